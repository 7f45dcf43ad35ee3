"""Count what `sft` or `prefer` reads, prepared in a temporary folder before anything is rented.

Of a data set on the Hub, only the first SAMPLED records are read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pion.data.chat.chat_format import ChatFormat
from pion.data.tokens.tokenizer import Tokenizer
from pipeline.base.keep import tokenizer_of_base
from pipeline.data.sources import SAMPLED
from pipeline.job import HubDataset, Job, Source
from pipeline.stages.prepare import prepare_prefer, prepare_sft

# With fewer steps, a model changes little, whatever the rate.
FEWEST_STEPS = 30


@dataclass(frozen=True)
class Counted:
    """What was counted of a stage. `whole` is False if only the first records of a source were
    read.

    `first` shows the first usable record as the model will see it, with the learned tokens between
    ⟦ and ⟧, and `specials` are the special tokens in it, by their ids. `notes` say what else
    happened to texts: characters that the vocabulary lacks, for example. `warnings` say what the
    data have and the model will not learn. `sources` are what the manifest has of each source.
    """

    stage: str
    rows: int
    whole: bool
    first: list[str]
    specials: dict[int, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    sources: list[dict[str, Any]]

    def passes(self, job: Job) -> float:
        """Return how often the stage trains on each of these rows."""
        section = job.section(self.stage)
        if section.steps is None:
            return section.passes
        return section.steps * section.global_batch / self.rows

    def first_in_words(self) -> str:
        """Return the first record, with what is learned of it marked."""
        return "\n".join(["what the model learns is between ⟦ and ⟧:", *self.first])


# Returns the lines that show the first usable record, and its ids.
Look = Callable[[Job, Tokenizer, ChatFormat], tuple[list[str], Iterable[int]]]


def count(job: Job, stage: str, look: Look, *, batch: bool) -> Counted | None:
    """Return what the data of a stage give; None if their ids are not known yet, because the
    tokenizer is trained later.

    `batch` is whether data that fill no batch are refused. Raises BadInput for data that can't be
    used.
    """
    if job.tokenizer is not None and job.tokenizer.train is not None:
        return None
    copy = job.model_copy(deep=True)
    section = copy.conversations(stage)
    whole = keep_first_records(section.sources)
    if not (batch and whole):
        section.global_batch = 1
    prepare = prepare_sft if stage == "sft" else prepare_prefer
    with tempfile.TemporaryDirectory(prefix="pion-count-") as place:
        folder = Path(place)
        tokenizer = tokenizer_of_base(job, folder / "base")
        report = prepare(copy, folder / "rows", tokenizer, lambda message: None).report
        file = folder / "rows/tokenizer.json"
        own = Tokenizer.from_file(file)
        with closing(ChatFormat(file, own)) as written:
            first, ids = look(copy, own, written)
    present = set(ids)
    sources = report["sources"]
    return Counted(
        stage,
        rows=report["train_rows"],
        whole=whole,
        first=first,
        specials={token: text for text, token in own.special_ids.items() if token in present},
        notes=tuple(words for source in sources for words in source.get("remarks", ())),
        warnings=tuple(words for source in sources for words in source.get("warnings", ())),
        sources=sources,
    )


def keep_first_records(sources: Iterable[Source]) -> bool:
    """Let sources on the Hub give at most SAMPLED records; return whether these are all."""
    whole = True
    for source in sources:
        if isinstance(source, HubDataset):
            most = source.max_documents
            whole = whole and most is not None and most <= SAMPLED
            source.max_documents = SAMPLED if most is None else min(most, SAMPLED)
    return whole


def know_rows(job: Job, counted: Counted, what: str) -> str | None:
    """Tell a job how many rows a stage has. Return what is not certain about `what` follows from
    them, as a sentence; None if everything is."""
    job.section(counted.stage).know_rows(counted.rows)
    if counted.whole:
        return None
    records = "conversations" if counted.stage == "sft" else "preferences"
    return (
        f"{what} of the first {SAMPLED:,} {records} of a data set: all of them take as many "
        "times longer as there are more"
    )


def know_steps(job: Job, stage: str, counted: Counted | None) -> str | None:
    """Tell a job the rows that the steps of a stage follow from. Return what is not certain about
    the steps."""
    if counted is None:
        return f"the steps of {stage} follow from its rows, which are not known before prepare"
    return know_rows(job, counted, f"the steps of {stage} are")


def makes_few_steps(job: Job, counted: Counted) -> bool:
    """Return whether the passes over the data, if all were counted, are only a few steps."""
    section = job.section(counted.stage)
    return counted.whole and section.steps is None and section.total_steps < FEWEST_STEPS


def better_batch(rows: float) -> int:
    """Return the largest power of 2 that makes FEWEST_STEPS steps of so many rows, or 1."""
    most = int(rows / FEWEST_STEPS)
    return 1 << (most.bit_length() - 1) if most else 1
