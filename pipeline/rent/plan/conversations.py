"""How many rows a job's conversations give, counted before anything is rented.

The conversations are prepared as the run will prepare them, in a temporary folder. Of a data set on
the Hub, only the first SAMPLED conversations are read.
"""

from __future__ import annotations

import math
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Tokenized, marked_text
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.base.keep import tokenizer_of_base
from pipeline.console.formats import amount, passes_in_words
from pipeline.data.conversations_to_rows import Writing
from pipeline.data.sources import SAMPLED, conversations, find_input
from pipeline.job import Job
from pipeline.rent.plan.few_steps import FEWEST_STEPS, better_batch
from pipeline.rent.plan.first_records import keep_first_records
from pipeline.rent.plan.preferences import lacks_rows, require_known
from pipeline.stages.prepare import prepare_sft
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import know_rows
from pipeline.state.stores import open_store

# More passes over the same conversations rarely help, and make a model repeat them.
MOST_PASSES = 5


@dataclass(frozen=True)
class Counted:
    """What was counted. `whole` is False if only the first conversations of a source were read.

    `first` is the text of the first conversation as the model will see it, with the learned tokens
    between ⟦ and ⟧, and `specials` are the special tokens in it, by their ids. `notes` say what
    else happened to texts: characters that the vocabulary lacks, for example. `warnings` say what
    the data have and the model will not learn.
    """

    rows: int
    tokens: int
    conversations: int
    whole: bool
    first: str
    specials: dict[int, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def count_conversations(job: Job) -> Counted | None:
    """Return what the conversations of `sft` give; None if their ids are not known yet.

    The tokenizer may come from pretraining. Raises BadInput for conversations that can't be used,
    and for too few of them to fill one batch.
    """
    assert job.sft is not None
    if job.tokenizer is not None and job.tokenizer.train is not None:
        return None
    counted = job.model_copy(deep=True)
    assert counted.sft is not None
    whole = keep_first_records(counted.sft.sources)
    counted.sft.global_batch = 1  # too little data is refused below, with what would do
    with tempfile.TemporaryDirectory(prefix="pion-count-") as place:
        folder = Path(place)
        tokenizer = tokenizer_of_base(job, folder / "base")
        report = prepare_sft(counted, folder / "sft", tokenizer, lambda message: None).report
        first, specials = _first(counted, folder / "sft")
    sources = report["sources"]
    found = Counted(
        rows=report["train_rows"],
        tokens=report["train_tokens"],
        conversations=sum(source["train_conversations"] for source in sources),
        whole=whole,
        first=first,
        specials=specials,
        notes=tuple(remark for source in sources for remark in source.get("remarks", ())),
        warnings=tuple(words for source in sources for words in source.get("warnings", ())),
    )
    batch = job.sft.global_batch
    if whole and found.rows < batch:
        raise BadInput(
            f"{found.conversations:,} conversations fill {found.rows:,} rows of "
            f"{job.sft_seq_len:,} tokens, and one batch needs {batch:,} (sft.global_batch). "
            f"Give sft.global_batch={_better_batch(job, found)}, or more conversations"
            + "".join(f". {words}" for words in found.warnings)
        )
    return found


def _first(job: Job, folder: Path) -> tuple[str, dict[int, str]]:
    """Return the text of the first conversation, whose data was prepared in `folder`, and its
    special tokens."""
    assert job.sft is not None
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    found = find_input(job, job.sft.sources[0], "sft.sources.0")
    with closing(ChatFormat(folder / "tokenizer.json", tokenizer)) as written:
        _, talk = next(conversations(job, found, own=written.own))
        (examples,) = Writing(written).examples([talk])
    shown: Tokenized = examples.tokenized[-1]  # of a split one, the example with all turns
    present = set(shown.ids.tolist())
    specials = {token: text for text, token in tokenizer.special_ids.items() if token in present}
    return marked_text(tokenizer, shown), specials


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
        know_rows(job, head)
    unsure = [_expect_rows(job), require_known(job)]
    return "; ".join(filter(None, unsure)) or None


def _expect_rows(job: Job) -> str | None:
    """Return what `expect_rows` does, of conversations alone."""
    section = job.sft
    if section is None or section.steps_are_known:
        return None
    counted = count_conversations(job)
    if counted is None:
        return "the steps of sft follow from its rows, which are not known before prepare"
    section.know_rows(counted.rows)
    if counted.whole:
        return None
    return (
        f"the steps of sft are of the first {SAMPLED:,} conversations of a data set: all of them "
        "take as many times longer as there are more"
    )


def passes_over(job: Job, counted: Counted) -> float:
    """Return how often `sft` trains on each of these rows."""
    section = job.section("sft")
    if section.steps is None:
        return section.passes
    return section.steps * section.global_batch / counted.rows


def in_words(job: Job, counted: Counted) -> str:
    """Return rows, passes, steps and tokens of `sft`, and what is lost of the conversations."""
    section = job.section("sft")
    passes = passes_over(job, counted)
    trained = section.total_steps * section.global_batch * job.sft_seq_len
    words = (
        f"{counted.conversations:,} conversations in {counted.rows:,} rows of {job.sft_seq_len:,} "
        f"tokens; {passes_in_words(passes)} in {section.total_steps:,} steps of "
        f"{section.global_batch} rows: {amount(trained)} tokens"
    )
    if not counted.whole:
        words = f"of the first {SAMPLED:,} conversations: {words}"
    return "; ".join([words, *counted.notes])


def too_few_steps(job: Job, counted: Counted) -> str | None:
    """Return a warning if the job makes only a few steps, where smaller batches would make more."""
    section = job.section("sft")
    better = _better_batch(job, counted)
    if (
        section.steps is not None
        or not counted.whole
        or section.global_batch == better
        or section.total_steps >= FEWEST_STEPS
    ):
        return None
    steps = math.ceil(section.passes * counted.rows / better)
    return (
        f"{section.total_steps:,} steps change a model little. With sft.global_batch={better}, the "
        f"same conversations make {steps:,} steps"
    )


def _better_batch(job: Job, counted: Counted) -> int:
    passes = job.section("sft").passes if job.section("sft").steps is None else 1.0
    return better_batch(passes * counted.rows)


def too_many_passes(job: Job, counted: Counted) -> str | None:
    """Return a warning if the job trains on the same conversations very often."""
    passes = passes_over(job, counted)
    if passes <= MOST_PASSES or not counted.whole:
        return None
    return (
        f"{passes:.3g} passes over the same conversations: beyond {MOST_PASSES}, a model rather "
        "repeats them than learns from them. Lower sft.steps or sft.epochs, or add conversations"
    )
