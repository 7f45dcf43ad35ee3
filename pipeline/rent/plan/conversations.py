"""What a job's conversations give, before anything is rented."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Tokenized, marked_text
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.console.formats import amount, passes_in_words
from pipeline.data.conversations_to_rows import learned_from
from pipeline.data.sources import SAMPLED, conversations, find_input
from pipeline.job import Job
from pipeline.rent.plan.counted import Counted, better_batch, count, know_steps, makes_few_steps
from pipeline.rent.plan.preferences import know_preferences, lacks_rows
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import know_rows as know_rows_of_run
from pipeline.state.stores import open_store

# More passes over the same conversations rarely help, and make a model repeat them.
MOST_PASSES = 5


def count_conversations(job: Job) -> Counted | None:
    """Return what the conversations of `sft` give; None if their ids are not known yet.

    The tokenizer may come from pretraining. Raises BadInput for conversations that can't be used,
    and for too few of them to fill one batch.
    """
    # Too few for a batch are refused below, with what would do.
    found = count(job, "sft", _first, batch=False)
    batch = job.section("sft").global_batch
    if found is not None and found.whole and found.rows < batch:
        raise BadInput(
            f"{how_many(found):,} conversations fill {found.rows:,} rows of "
            f"{job.sft_seq_len:,} tokens, and one batch needs {batch:,} (sft.global_batch). "
            f"Give sft.global_batch={_better_batch(job, found)}, or more conversations"
            + "".join(f". {words}" for words in found.warnings)
        )
    return found


def how_many(counted: Counted) -> int:
    """Return the number of conversations to train on."""
    return sum(source["train_conversations"] for source in counted.sources)


def _first(job: Job, tokenizer: Tokenizer, written: ChatFormat) -> tuple[list[str], Iterable[int]]:
    assert job.sft is not None
    found = find_input(job, job.sft.sources[0], "sft.sources.0")
    _, talk = next(conversations(job, found, own=written.own))
    (examples,) = learned_from(written, [talk])
    shown: Tokenized = examples.tokenized[-1]  # of a split one, the example with all turns
    return [marked_text(tokenizer, shown)], shown.ids.tolist()


def expect_rows(job: Job) -> str | None:
    """Tell the job how many rows its conversations and preferences give, where the time that it
    takes depends on them.

    Returns what is not certain about it, as a sentence; None if everything is. Raises StoreError,
    and BadInput for conversations that can't be used.
    """
    known = all(job.section(stage).steps_are_known for stage in job.train_stages)
    if known and not lacks_rows(job):
        return None
    head = RunState(open_store(job.store), job.name).read()
    if head is not None:
        know_rows_of_run(job, head)
    unsure = [know_preferences(job)]
    if job.sft is not None and not job.sft.steps_are_known:
        unsure.insert(0, know_steps(job, "sft", count_conversations(job)))
    return "; ".join(filter(None, unsure)) or None


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
    section, better = job.section("sft"), _better_batch(job, counted)
    found = {}
    if makes_few_steps(job, counted) and section.global_batch != better:
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


def _better_batch(job: Job, counted: Counted) -> int:
    section = job.section("sft")
    passes = section.passes if section.steps is None else 1.0
    return better_batch(passes * counted.rows)
