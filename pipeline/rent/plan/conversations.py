"""What is said of a job's conversations, before anything is rented."""

from __future__ import annotations

import math

from pipeline.console.formats import amount, passes_in_words
from pipeline.data.sources import SAMPLED
from pipeline.job import Job
from pipeline.rent.plan.counted import Counted, better_batch, how_many

# More passes over the same conversations rarely help, and make a model repeat them.
MOST_PASSES = 5


def in_words(job: Job, counted: Counted) -> str:
    """Return rows, passes, steps and tokens of `sft`, and what is lost of the conversations."""
    section = job.section("sft")
    trained = section.total_steps * section.global_batch * job.sft_seq_len
    words = (
        f"{how_many(counted):,} conversations in {counted.rows:,} rows of {job.sft_seq_len:,} "
        f"tokens; {passes_in_words(counted.passes(job))} in {section.total_steps:,} steps of "
        f"{section.global_batch} rows: {amount(trained)} tokens"
    )
    if not counted.whole:
        words = f"of the first {SAMPLED:,} conversations: {words}"
    return "; ".join([words, *counted.notes])


def warnings_about(job: Job, counted: Counted) -> dict[str, str]:
    """Return what will probably disappoint, by a short name."""
    section, better = job.section("sft"), better_batch(job, counted)
    found = {}
    if counted.makes_few_steps(job) and section.global_batch != better:
        steps = math.ceil(section.passes * counted.rows / better)
        found["steps"] = (
            f"{section.total_steps:,} steps change a model little. With sft.global_batch={better}, "
            f"the same conversations make {steps:,} steps"
        )
    if counted.whole and (passes := counted.passes(job)) > MOST_PASSES:
        found["passes"] = (
            f"{passes:.3g} passes over the same conversations: beyond {MOST_PASSES}, a model "
            "rather repeats them than learns from them. Lower sft.steps or sft.epochs, or add "
            "conversations"
        )
    return found
