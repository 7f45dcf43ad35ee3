"""Check what the conversations and the preferences of a job give: their rows and steps, what is
lost of them, and what will probably disappoint."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from pion.data.preference.layouts import Preference
from pion.data.preference.rendering import Dropped, Outcome, Refused, Usable, reason_without_ids
from pion.data.preference.summary import Part, Summary, tally_of
from pion.errors import BadInput
from pipeline.base.find import find_base
from pipeline.base.keep import is_pinned
from pipeline.console.formats import amount, passes_in_words
from pipeline.console.formats import counted as counted_words
from pipeline.data.preferences import kind_of_source, preferences
from pipeline.data.sources import SAMPLED, Input, find_input
from pipeline.job import Job
from pipeline.job.stages import CONVERSING
from pipeline.rent.check import CheckRow
from pipeline.rent.check.job import is_prepared
from pipeline.rent.plan.counted import (
    FEWEST_STEPS,
    LOOKED_AT,
    RECORDS,
    Counted,
    better_batch,
    count,
    keep_first_records,
)

if TYPE_CHECKING:
    from torch import Tensor

# Outside of these pairs per step, recipes that worked are rare.
FEWEST_PAIRS, MOST_PAIRS = 32, 512
# More passes over the same data rarely help; and over conversations, make a model repeat them.
MOST_PASSES = {"sft": 5, "prefer": 3, "reinforce": 100}
LEARNED = "what the model learns is between ⟦ and ⟧"
# The names of the embedding in files of transformers and of Pion.
EMBEDDINGS = ("model.embed_tokens.weight", "embed.weight")


def check_conversations(job: Job) -> list[CheckRow]:
    """Show what the conversations and preferences give. Raises BadInput for those that can't be
    used."""
    stages = [stage for stage in CONVERSING if stage in job.train_stages]
    if not stages or is_prepared(job):
        return []
    return list(chain.from_iterable(_check_stage(job, stage) for stage in stages))


def _check_stage(job: Job, stage: str) -> list[CheckRow]:
    counted = count(job, stage)
    if counted is None:
        return _before_a_tokenizer(job) if stage == "prefer" else []
    job.section(stage).know_rows(counted.rows)
    if not counted.first:
        raise BadInput(f"none of the first {LOOKED_AT} preferences can be used")
    says = "what the model is asked" if stage == "reinforce" else LEARNED
    first = [f"{says}:", *counted.first]
    in_words = {"sft": _of_conversations, "prefer": _of_preferences, "reinforce": _of_prompts}[
        stage
    ]
    warnings = {
        "batch": _unusual_batch(job, counted),
        "steps": _few_steps(job, counted),
        "passes": _many_passes(job, counted),
    }
    return [
        CheckRow(RECORDS[stage], True, in_words(job, counted)),
        *(CheckRow(RECORDS[stage], None, words) for words in counted.warnings),
        *(CheckRow(short, None, words) for short, words in warnings.items() if words is not None),
        CheckRow("the first", True, "\n".join(first)),
        *_untrained(job, stage, counted.specials),
    ]


def _of_conversations(job: Job, counted: Counted) -> str:
    """Return rows, passes, steps and tokens of `sft`, and what is lost of the conversations."""
    section = job.section("sft")
    words = (
        f"{counted.items:,} conversations in {counted.rows:,} rows of {job.sft_seq_len:,} "
        f"tokens; {passes_in_words(counted.passes(job))} in {section.total_steps:,} steps of "
        f"{section.global_batch} rows: {_tokens(job, 'sft')}"
    )
    if not counted.whole:
        words = f"of the first {SAMPLED:,} conversations: {words}"
    return "; ".join([words, *counted.notes])


def _of_preferences(job: Job, counted: Counted) -> str:
    """Return lines on each source of `prefer`, and on the steps of the stage."""
    lines = []
    for key, summary in counted.summaries.items():
        first, *more = summary.in_words()
        lines += [f"{key}: {first}" if len(counted.summaries) > 1 else first, *more]
    lines += counted.notes
    steps = counted_words(job.section("prefer").total_steps, "step")
    lines.append(
        f"{passes_in_words(counted.passes(job))} in {steps} of about "
        f"{_per_step(job, counted):,.0f} {counted.what}: {_tokens(job, 'prefer')}"
    )
    if job.needs_reference("prefer"):
        lines.append(
            "before the first step, the reference is computed once: it takes a third of the time "
            "of a pass, and another beta or loss does not need it again"
        )
    if not counted.whole:
        lines[0] = f"of the first {SAMPLED:,}: {lines[0]}"
    return "\n".join(lines)


def _of_prompts(job: Job, counted: Counted) -> str:
    """Return the prompts, steps and answers of `reinforce`."""
    section = job.reinforce
    assert section is not None
    sampled = section.total_steps * section.global_batch * section.answers * section.max_tokens
    words = (
        f"{counted.items:,} prompts; {passes_in_words(counted.passes(job))} in "
        f"{counted_words(section.total_steps, 'step')} of {section.global_batch} prompts, with "
        f"{section.answers} answers to each: at most {amount(sampled)} tokens to sample"
    )
    return "; ".join([words, *counted.notes])


def _tokens(job: Job, stage: str) -> str:
    section = job.section(stage)
    tokens = section.total_steps * section.global_batch * job.seq_len(stage)
    return f"{amount(tokens)} tokens"


def _per_step(job: Job, counted: Counted) -> float:
    """Return how many pairs, or single answers, a step learns from on average."""
    return job.section("prefer").global_batch * counted.items / counted.rows


# ---------------------------------------------------------------- what will probably disappoint


def _unusual_batch(job: Job, counted: Counted) -> str | None:
    if counted.stage != "prefer" or counted.items < FEWEST_PAIRS:
        return None
    batch = _per_step(job, counted)
    if FEWEST_PAIRS <= batch <= MOST_PAIRS:
        return None
    return (
        f"a step has about {batch:,.0f} {counted.what}; {FEWEST_PAIRS} to {MOST_PAIRS} are usual. "
        "Change prefer.global_batch"
    )


def _few_steps(job: Job, counted: Counted) -> str | None:
    """Return a warning of passes that are only a few steps, with a batch that makes more."""
    section, batch = job.section(counted.stage), better_batch(job, counted)
    if not counted.whole or section.steps is not None or section.total_steps >= FEWEST_STEPS:
        return None
    if counted.stage == "prefer":  # a step needs FEWEST_PAIRS, too
        batch = max(batch, math.ceil(FEWEST_PAIRS * counted.rows / counted.items))
    words = f"{counted_words(section.total_steps, 'step')} change a model little"
    if batch >= section.global_batch:
        more = f"{words}: use more {counted.what}, or more passes"
        return more if counted.stage == "prefer" else None
    return (
        f"{words}. With {counted.stage}.global_batch={batch}, the same {counted.what} make "
        f"{math.ceil(section.passes * counted.rows / batch):,} steps"
    )


def _many_passes(job: Job, counted: Counted) -> str | None:
    passes, most = counted.passes(job), MOST_PASSES[counted.stage]
    if not counted.whole or passes <= most:
        return None
    stage, then = counted.stage, "little is left to learn"
    if stage == "sft":
        then = "a model rather repeats them than learns from them"
    return (
        f"{passes:.3g} passes over the same {counted.what}: beyond {most}, {then}. Lower "
        f"{stage}.epochs or {stage}.steps, or add {counted.what}"
    )


def _untrained(job: Job, stage: str, specials: dict[int, str]) -> list[CheckRow]:
    """Return a warning if LoRA can't teach the model these special tokens."""
    if job.base is None or stage != job.train_stages[0] or job.lora(stage) is None:
        return []
    if job.base.commit is not None or is_pinned(job, job.base):
        return []  # the weights may be elsewhere, and the run says the same when training starts
    from pion.evaluation.untrained_rows import never_stops

    found = find_base(job.base.source, job.folder)
    embedding = _embedding([found.bring(n) for n in found.files if n.endswith(".safetensors")])
    words = None if embedding is None else never_stops(embedding, specials)
    return [] if words is None else [CheckRow("end of turn", None, words)]


def _embedding(files: list[Path]) -> Tensor | None:
    """Return the embedding of a model, without reading the other tensors."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in set(EMBEDDINGS).intersection(file.keys()):
                return cast("Tensor", file.get_tensor(name))
    return None


# ---------------------------------------------------------------- before there is a tokenizer


def _before_a_tokenizer(job: Job) -> list[CheckRow]:
    """Show what can be said of the preferences of a job whose tokenizer is trained later.

    Raises BadInput for preferences that can't be used, whatever the tokenizer is.
    """
    read = job.model_copy(deep=True)
    assert read.prefer is not None
    whole = keep_first_records(read.prefer.sources)
    lines = []
    for number, source in enumerate(read.prefer.sources):
        key = f"prefer.sources.{number}"
        summary = _without_lengths(read, find_input(read, source, key))
        read.prefer.know_kind(summary.kind, key)
        summary.check(key)
        first = "" if whole else f"of the first {SAMPLED:,}: "
        usable = f"{summary.train.items:,} {summary.what} can be used, before lengths"
        lines += [f"{key}: {first}{usable}", *summary.left_out()]
    lines.append(
        "their lengths, rows and steps are known once the tokenizer is trained: "
        "`pion run JOB --until prepare` counts exactly, and trains nothing"
    )
    return [CheckRow("preferences", True, "\n".join(lines))]


def _without_lengths(job: Job, found: Input) -> Summary:
    kind = kind_of_source(job, found)
    read = [one.preference for one in preferences(job, found)]
    tally = tally_of(read, [_before_encoding(one) for one in read])
    kept = tally.read - tally.refused - sum(tally.dropped.values())
    seq_len = job.seq_len("prefer")
    train, none = (Part(items, 0, 0, None, None) for items in (kept, 0))
    return Summary(kind, seq_len, train, none, tally, seq_len)


def _before_encoding(preference: Preference | str) -> Outcome:
    """Return what becomes of a preference, or of what can't be read as one, whatever its ids."""
    if isinstance(preference, str):
        return Refused(preference)
    reason = reason_without_ids(preference)
    return Usable((), np.empty(0)) if reason is None else Dropped(reason, None)
