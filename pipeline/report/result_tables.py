"""Evaluation results as rows of text and sentences, for the model card and the page of a run.

A value with a standard error reads `2.081 ± 0.012`. An en dash marks an unmeasured value. The
results hold the model that the run started from (`base`), the trained model, and the `change` from
the one to the other, with the standard error of paired documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pipeline.console.formats import short_amount
from pipeline.job import Job
from pipeline.report.blocks import (
    Block,
    Table,
    is_finite,
    percent_with_error,
    share_with_interval,
    signed,
    value_with_error,
)
from pipeline.report.calibration import calibration_blocks
from pipeline.report.core import core_blocks
from pipeline.report.lm_eval_rows import lm_eval_blocks
from pipeline.report.part_results import part_blocks
from pipeline.report.preferences import compared, preference_blocks
from pipeline.report.results import TRAINED, numbers_of
from pipeline.report.rewards import reward_blocks
from pipeline.report.worse import ERRORS_OF_A_DIFFERENCE, made_worse

MODELS = {**TRAINED, "untrained": "untrained"}


def result_blocks(
    job: Job, results: Mapping[str, Any], *, code: str = "{}", brief: bool = False
) -> list[Block]:
    """Return the sentences and tables that say what was measured; empty if nothing was.

    `code` is the format of names and hashes. `brief` leaves out the single tasks of CORE.
    """
    blocks = [
        *(f"{words}." for words in made_worse(results)),
        chosen_checkpoint(results),
        *_compared_blocks(job, results, code=code),
        *preference_blocks(results, brief=brief),
        *reward_blocks(results, brief=brief),
        *_language_blocks(results),
        whose_bytes(results),
        *_long_context(job, results),
        *calibration_blocks(results),
        *part_blocks(results),
        *_answer_blocks(results),
        *core_blocks(results, brief=brief),
        *lm_eval_blocks(results, code=code),
    ]
    shown = [block for block in blocks if block]
    return [*shown, "± is one standard error."] if shown else []


def _compared_blocks(job: Job, results: Mapping[str, Any], *, code: str) -> list[Block]:
    """Return what was measured before and after training, if the run started from a model."""
    compared = before_after_rows(job, results)
    if not compared:
        return []
    return [
        "Before and after training (lower is better):",
        Table(("", "before", "after", "difference"), compared),
        what_it_forgot(job, results, code=code),
    ]


def _language_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Return the losses on held-out text; empty if no model was measured on some."""
    language = language_rows(results)
    if not language:
        return []
    note = "On text held out of training (lower is better)"
    baseline = results.get("ngram")
    if baseline and baseline.get("train_tokens"):
        tokens = short_amount(baseline["train_tokens"])
        note += f", next to {baseline['order']}-gram counts over {tokens} training tokens"
    columns = ["model", "loss (nats per token)", "perplexity", "bits per byte"]
    if sources := _sources_of(results):
        note += ". The first three numbers are plain means of all sources"
        columns += [f"on {name} alone" for name in sources]
    return [f"{note}:", Table(columns, language)]


def _long_context(job: Job, results: Mapping[str, Any]) -> list[Block]:
    """Return what the context beyond `data.seq_len` is worth to the trained model."""
    found = (results.get(job.train_stages[-1]) or {}).get("long_context")
    if not found:
        return []
    n, tokens = f"{job.data.seq_len:,} tokens", f"{found.get('tokens', 0):,}"
    bits = signed(value_with_error(found, "worth", 4))
    worth = f"{bits} bits per byte if the model sees at most {n} before them (of {tokens} tokens)"
    if bits == "–":
        worth = f"not measured, as only {tokens} tokens have so much"
    worths = [
        (f"{int(at):,} to {2 * int(at):,}", signed(value_with_error(own, "bits", 4)))
        for at, own in found.get("by_distance", {}).items()
    ]
    rows = [
        (f"{int(at):,}", value_with_error(own, "bits"))
        for at, own in found.get("copies", {}).items()
    ]
    return [
        f"Held-out tokens with more than {n} of their own document before them: {worth}. The loss "
        f"of the first {n} of a row is {value_with_error(found, 'short_loss')} nats per token.",
        *([Table(("tokens before", "bits per byte more"), worths)] if worths else []),
        "Bits per token that 64 tokens save the second time, by the tokens between:",
        Table(("tokens between", "bits saved"), rows),
    ]


def _answer_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Return how the models answer: conversations and multiple choice."""
    blocks: list[Block] = []
    found = (results.get(stage) for stage in ("reinforce", "prefer", "sft"))
    response: Mapping[str, Any] = next(filter(None, found), {})
    if "response_loss" in response:
        loss = value_with_error(response, "response_loss")
        stops = share_with_interval(response, "stop_accuracy", "ends")
        early = share_with_interval(response, "false_stop_rate", "others")
        blocks.append(
            f"On held-out conversations the loss of the responses is {loss} nats per token, and "
            f"the model predicts the end of a response where it belongs in {stops} of the cases, "
            f"and in {early} of the other places."
        )
    if choices := choice_rows(results):
        blocks += [
            "Multiple choice by likelihood:",
            Table(("task", "model", "accuracy", "chance", "questions"), choices, 2),
        ]
    return blocks


def chosen_checkpoint(results: Mapping[str, Any]) -> str:
    """Return in a sentence which checkpoint was chosen for its held-out loss; empty if none."""
    chosen = results.get("checkpoint")
    if not chosen:
        return ""
    best, last = (value_with_error(chosen, f"{of}held_out_loss", 4) for of in ("", "last_"))
    step, last_step = f"{chosen['step']:,}", f"{chosen['last_step']:,}"
    if step == last_step:
        return f"The model is that of the last step, {step}: no held-out loss was lower."
    return (
        f"The model is that of step {step} of {last_step}: in training, its held-out loss was the "
        f"lowest, {best}. After the last step it was {last}."
    )


def whose_bytes(results: Mapping[str, Any]) -> str:
    """Return in a sentence which bytes bits per byte count, if not those of the text itself."""
    normalization = results.get("normalization")
    if not normalization:
        return ""
    return (
        f"The tokenizer changes a text by {normalization} first: bits per byte count the bytes of "
        "the changed text."
    )


def _sources_of(results: Mapping[str, Any]) -> list[str]:
    """Return the sources on which models were measured apart."""
    return list(
        next((of["sources"] for key in MODELS if (of := results.get(key)) and "sources" in of), {})
    )


def language_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return (model, loss, perplexity, bits per byte) of each model measured on held-out text.

    Bits per byte on each source follow, if models were measured on the sources apart.
    """
    measured = [(title, results.get(key) or {}) for key, title in MODELS.items()]
    rows = [(title, result) for title, result in measured if "loss" in result]
    if ngram := results.get("ngram"):
        rows.insert(len(rows) - ("untrained" in results), (f"{ngram['order']}-gram", ngram))
    return [
        (
            title,
            value_with_error(result, "loss"),
            value_with_error(result, "perplexity", 1),
            value_with_error(result, "bits_per_byte"),
            *(
                value_with_error(result.get("sources", {}).get(name, {}), "bits_per_byte")
                for name in _sources_of(results)
            ),
        )
        for title, result in rows
    ]


def choice_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return (task, model, accuracy, chance, questions) of the multiple-choice tasks."""
    rows = []
    for key, title in MODELS.items():
        measured = results.get(key) or {}
        tasks = {"true continuation": measured.get("continuations"), **measured.get("packs", {})}
        for task, result in tasks.items():
            if result:
                shares = [percent_with_error(result, name) for name in ("accuracy", "chance")]
                rows.append((task, title, *shares, f"{result['questions']:,}"))
    return rows


# What is compared before and after training, by what it is called.
COMPARED = {
    "loss of responses in held-out conversations (nats per token)": "response_loss",
    "held-out text (bits per byte)": "bits_per_byte",
    "other text (bits per byte)": "text.bits_per_byte",
}


def before_after_rows(job: Job, results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (what, before, after, difference ± error) of all that was measured before training."""
    sides = [numbers_of(results.get(name, {})) for name in ("base", job.train_stages[-1], "change")]
    return [
        (title, *compared(sides, value_with_error, measure))
        for title, measure in COMPARED.items()
        if measure in sides[0]
    ]


def what_it_forgot(job: Job, results: Mapping[str, Any], *, code: str = "{}") -> str:
    """Return in a sentence or two what the other text is, and what the model has forgotten of it.

    `code` is the format of names and hashes.
    """
    sha256 = results.get("compared_text", {}).get("sha256")
    before = results.get("base", {}).get("text", {}).get("bits_per_byte")
    if sha256 is None or not before:
        return ""
    text = job.evaluate.text
    named = "a sample that comes with Pion" if text is None else code.format(PurePath(text).name)
    hashed = f"sha256 {code.format(sha256)}"
    return f"The other text is {named} ({hashed}). {_meaning(before, numbers_of(results))}"


def start_in_words(base: Mapping[str, Any]) -> str:
    """Return what was measured before training, in a line."""
    numbers = numbers_of(base)
    return "; ".join(
        f"{title}: {value_with_error(numbers, measure)}"
        for title, measure in COMPARED.items()
        if measure in numbers
    )


def _meaning(before: float, numbers: Mapping[str, float]) -> str:
    more = numbers.get("change.text.bits_per_byte")
    error = numbers.get("change.text.bits_per_byte_sem")
    if not is_finite(more):
        return "What the model has forgotten of it could not be measured."
    share = f"{abs(100 * more / before):.1f} %"
    if not is_finite(error):
        return (
            f"The trained model needs {share} {'more' if more > 0 else 'fewer'} bits for it. It is "
            "too short to tell this from chance."
        )
    if abs(more) <= ERRORS_OF_A_DIFFERENCE * error:
        return (
            f"The difference is within {ERRORS_OF_A_DIFFERENCE:g} standard errors, so this text "
            "does not show that training made the model forget."
        )
    if more > 0:
        return f"Training made the model forget: it needs {share} more bits for the same text."
    return f"The model forgot nothing of it: it needs {share} fewer bits for the same text."
