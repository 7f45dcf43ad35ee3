"""Evaluation results as rows of text and sentences, for the model card and the page of a run.

A value with a standard error reads `2.081 ± 0.012`. An en dash marks an unmeasured value. The
results hold the model that the run started from (`base`), the trained model, and the `change` from
the one to the other, with the standard error of paired documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pion.config.model_config import RESULTS
from pion.config.part_fields import Measure, PartResult
from pion.measures import (
    CALIBRATION,
    CHECKPOINT,
    CHOICES,
    HELD_OUT,
    LONG_CONTEXT,
    NEAR_70,
    RESPONSES,
    SAVED,
    WORTH,
    columns,
)
from pipeline.console.formats import short_amount
from pipeline.job import Job
from pipeline.report.benchmarks import core_blocks, lm_eval_blocks
from pipeline.report.blocks import (
    Block,
    change_table,
    is_finite,
    measured_table,
    share_with_error,
    share_with_interval,
    written,
)
from pipeline.report.preferences import preference_blocks
from pipeline.report.results import TRAINED, numbers_of
from pipeline.report.rewards import reward_blocks
from pipeline.report.worse import ERRORS_OF_A_DIFFERENCE, made_worse

Results = Mapping[str, Any]

# What is compared before and after training.
COMPARED = {
    "response_loss": Measure("loss of responses in held-out conversations (nats per token)"),
    "bits_per_byte": Measure("held-out text (bits per byte)"),
    "text.bits_per_byte": Measure("other text (bits per byte)"),
}
ABOUT_CALIBRATION = (
    "How far the probability of the most likely token can be trusted. ECE is the mean distance "
    "between this probability and how often the token is right, in 15 groups of tokens. Of ECE and "
    "of the Brier score, lower is better:"
)
# With fewer tokens, a group says too little.
FEWEST_OF_A_GROUP = 100
# The model that a run started from.
BEFORE = "before training"


def result_blocks(
    job: Job, results: Results, *, code: str = "{}", brief: bool = False
) -> list[Block]:
    """Return the sentences and tables that say what was measured; empty if nothing was.

    `code` is the format of names and hashes. `brief` leaves out the single tasks of CORE.
    """
    blocks = [
        *(f"{sentence}." for sentence in made_worse(results)),
        _chosen_checkpoint(results),
        *before_after_blocks(job, results, code=code),
        *preference_blocks(results, brief=brief),
        *reward_blocks(results, brief=brief),
        *_language_blocks(results),
        _whose_bytes(results),
        *_long_context(job, results),
        *calibration_blocks(results),
        *part_blocks(results),
        _responses_in_words(results),
        *_choice_blocks(results),
        *core_blocks(results, brief=brief),
        *lm_eval_blocks(results, code=code),
    ]
    shown = [block for block in blocks if block]
    return [*shown, "± is one standard error."] if shown else []


# ---------------------------------------------------------------- before and after training


def before_after_blocks(job: Job, results: Results, *, code: str = "{}") -> list[Block]:
    """Return what was measured before and after training, if the run started from a model.

    `code` is the format of names and hashes.
    """
    sides = [numbers_of(results.get(name, {})) for name in ("base", job.train_stages[-1], "change")]
    compared = {name: measure for name, measure in COMPARED.items() if name in sides[0]}
    if not compared:
        return []
    return [
        "Before and after training (lower is better):",
        change_table(sides, compared),
        _what_it_forgot(job, results, code),
    ]


def start_in_words(base: Results) -> str:
    """Return what was measured before training, in a line."""
    numbers = numbers_of(base)
    return "; ".join(
        f"{measure.title}: {written(numbers, name, measure)}"
        for name, measure in COMPARED.items()
        if name in numbers
    )


def _what_it_forgot(job: Job, results: Results, code: str) -> str:
    """Return what the other text is, and what the model has forgotten of it."""
    sha256 = results.get("compared_text", {}).get("sha256")
    before = results["base"].get("text", {}).get("bits_per_byte")
    if sha256 is None or not before:
        return ""
    text = job.evaluate.text
    named = "a sample that comes with Pion" if text is None else code.format(PurePath(text).name)
    hashed = f"sha256 {code.format(sha256)}"
    return f"The other text is {named} ({hashed}). {_meaning(before, numbers_of(results))}"


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


def _chosen_checkpoint(results: Results) -> str:
    """Return in a sentence which checkpoint was chosen for its held-out loss; empty if none."""
    chosen = results.get("checkpoint")
    if not chosen:
        return ""
    step, best, last_step, last = (
        written(chosen, name, measure) for name, measure in CHECKPOINT.items()
    )
    if step == last_step:
        return f"The model is that of the last step, {step}: no held-out loss was lower."
    return (
        f"The model is that of step {step} of {last_step}: in training, its held-out loss was the "
        f"lowest, {best}. After the last step it was {last}."
    )


# ---------------------------------------------------------------- text


def _language_blocks(results: Results) -> list[Block]:
    """Return the losses on held-out text; empty if no model was measured on some."""
    ngram = results.get("ngram", {})
    titles = {**TRAINED, "ngram": f"{ngram.get('order')}-gram", "untrained": "untrained"}
    records = {
        title: results[model] for model, title in titles.items() if "loss" in results.get(model, {})
    }
    if not records:
        return []
    note = "On text held out of training (lower is better)"
    if ngram.get("train_tokens"):
        tokens = short_amount(ngram["train_tokens"])
        note += f", next to {ngram['order']}-gram counts over {tokens} training tokens"
    measures = columns(HELD_OUT, "loss", "perplexity", "bits_per_byte")
    sources: Results = next((of["sources"] for of in records.values() if "sources" in of), {})
    if sources:
        note += ". The first three numbers are plain means of all sources"
    measures |= {f"sources.{name}.bits_per_byte": Measure(f"on {name} alone") for name in sources}
    rows = [((title,), numbers_of(record)) for title, record in records.items()]
    return [f"{note}:", measured_table(("model",), rows, measures)]


def _whose_bytes(results: Results) -> str:
    """Return in a sentence which bytes bits per byte count, if not those of the text itself."""
    normalization = results.get("normalization")
    if not normalization:
        return ""
    return (
        f"The tokenizer changes a text by {normalization} first: bits per byte count the bytes of "
        "the changed text."
    )


def _long_context(job: Job, results: Results) -> list[Block]:
    """Return what the context beyond `data.seq_len` is worth to the trained model."""
    record = results.get(job.train_stages[-1], {}).get("long_context")
    if not record:
        return []
    n, tokens = f"{job.data.seq_len:,} tokens", f"{record.get('tokens', 0):,}"
    loss, bits = (written(record, name, LONG_CONTEXT[name]) for name in ("short_loss", "worth"))
    worth = f"{bits} bits per byte if the model sees at most {n} before them (of {tokens} tokens)"
    if bits == "–":
        worth = f"not measured, as only {tokens} tokens have so much"
    worths = [
        ((f"{int(at):,} to {2 * int(at):,}",), of)
        for at, of in record.get("by_distance", {}).items()
    ]
    copies = [((f"{int(at):,}",), of) for at, of in record.get("copies", {}).items()]
    return [
        f"Held-out tokens with more than {n} of their own document before them: {worth}. The loss "
        f"of the first {n} of a row is {loss} nats per token.",
        *([measured_table(("tokens before",), worths, WORTH)] if worths else []),
        "Bits per token that 64 tokens save the second time, by the tokens between:",
        measured_table(("tokens between",), copies, SAVED),
    ]


# ---------------------------------------------------------------- calibration


def calibration_blocks(results: Results) -> list[Block]:
    """Return a table of how far the probabilities of all measured models can be trusted, and a
    sentence about the last one. Results of before 0.2.0 have nothing."""
    records = [
        ((title, text), record)
        for model, title in {**TRAINED, "base": BEFORE}.items()
        for text, path in (("held-out text", model), ("other text", f"{model}.text"))
        if (record := _record_at(results, f"{path}.calibration"))
    ]
    if not records:
        return []
    measures = columns(CALIBRATION, "confidence", "accuracy", "ece", "brier")
    table = measured_table(("model", "text"), records, measures)
    (title, text), last = records[0]
    return [ABOUT_CALIBRATION, table, _calibration_in_words(title, text, last)]


def _record_at(results: Results, path: str) -> Results:
    """Return the record at a dotted place, such as `sft.text.calibration`; {} if there is none."""
    for name in path.split("."):
        results = results.get(name) or {}
    return results


def _calibration_in_words(title: str, text: str, record: Results) -> str:
    """Return how far a model's probabilities can be trusted.

    The example is of tokens with a probability of about 70 %, if there are enough of them.
    """
    called = f"model {title}" if title == BEFORE else f"{title} model"
    example = record["near_70"]
    if example is None or example["tokens"] < FEWEST_OF_A_GROUP:
        confidence, right = (
            written(record, name, CALIBRATION[name]) for name in ("confidence", "accuracy")
        )
        return (
            f"On {text}, the most likely token of the {called} has a probability of "
            f"{confidence} on average, and is right in {right} of the cases."
        )
    confidence, right, tokens = (
        written(example, name, measure) for name, measure in NEAR_70.items()
    )
    return (
        f"Where the {called} gives a token of {text} about 70 % (on average {confidence}), "
        f"this token is right in {right} of the cases ({tokens} tokens)."
    )


def calibration_in_brief(record: Results) -> str:
    """Return `31.2 % sure, 30.5 % right (ECE 1.3 %)`."""
    sure, right, ece = (
        share_with_error(record[name], None) for name in ("confidence", "accuracy", "ece")
    )
    return f"{sure} sure, {right} right (ECE {ece})"


# ---------------------------------------------------------------- parts of a model


def part_blocks(results: Results) -> list[Block]:
    """Return a table of each part (pion/config/part_fields.py) that was measured alone."""
    blocks: list[Block] = []
    for part in RESULTS.values():
        records = [
            ((title, label), record)
            for model, title in TRAINED.items()
            for entry, label in part.entries.items()
            if (record := _record_at(results, f"{model}.{part.name}.{entry}"))
        ]
        if records:
            measures = columns(part.measures, *part.shown)
            blocks += [part.about, measured_table(part.columns, records, measures)]
    return blocks


def part_in_brief(part: PartResult, result: Results) -> str:
    """Return what was measured of a part, such as "1.62 ± 0.05 tokens a pass"."""
    record: Results = next(filter(None, map(result.get, [*part.entries][::-1])), {})
    return part.in_brief.format(*(written(record, n, part.measures[n]) for n in part.shown))


# ---------------------------------------------------------------- answers


def _responses_in_words(results: Results) -> str:
    """Return how well the last model that was measured on conversations predicts responses."""
    models = (results.get(stage) for stage in TRAINED if stage != "pretrain")
    record: Results = next(filter(None, models), {})
    if "response_loss" not in record:
        return ""
    loss = written(record, "response_loss", RESPONSES["response_loss"])
    stops = share_with_interval(record, "stop_accuracy", "ends")
    early = share_with_interval(record, "false_stop_rate", "others")
    return (
        f"On held-out conversations the loss of the responses is {loss} nats per token, and "
        f"the model predicts the end of a response where it belongs in {stops} of the cases, "
        f"and in {early} of the other places."
    )


def _choice_blocks(results: Results) -> list[Block]:
    """Return how the models answer questions of multiple choice."""
    records = [
        ((task, title), record)
        for model, title in {**TRAINED, "untrained": "untrained"}.items()
        for task, record in _choices(results.get(model, {}))
        if record
    ]
    if not records:
        return []
    return [
        "Multiple choice by likelihood:",
        measured_table(("task", "model"), records, CHOICES),
    ]


def _choices(model: Results) -> list[tuple[str, Results]]:
    return [("true continuation", model.get("continuations", {})), *model.get("packs", {}).items()]
