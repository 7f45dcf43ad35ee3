"""Count what `sft` or `prefer` reads, prepared in a temporary folder before anything is rented.

Of a data set on the Hub, only the first SAMPLED records are read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Tokenized, marked_text
from pion.data.preference.rendering import Usable, marked_preference, preference_format
from pion.data.preference.summary import Summary
from pion.data.prompt.layouts import Question
from pion.data.prompt.rendering import prompt_ids
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput, PionError
from pipeline.base.keep import tokenizer_of_base
from pipeline.console.formats import beginning
from pipeline.data.conversations_to_rows import learned_from
from pipeline.data.preferences import preferences
from pipeline.data.prompts import questions
from pipeline.data.sources import SAMPLED, Input, conversations, find_input
from pipeline.job import HubDataset, Job, Source
from pipeline.stages.prepare import prepare_part
from pipeline.state.record_json import build, closed_record
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import know_rows
from pipeline.state.stores import open_store

# With fewer steps, a model changes little, whatever the rate.
FEWEST_STEPS = 30
# What each stage reads.
RECORDS = {"sft": "conversations", "prefer": "preferences", "reinforce": "prompts"}
# The first preference that can be used is looked for in so many.
LOOKED_AT = 64


@dataclass(frozen=True)
class Counted:
    """What was counted of a stage. `whole` is False if only the first records of a source were
    read.

    `first` shows the first usable record as the model will see it, with the learned tokens between
    ⟦ and ⟧, and `specials` are the special tokens in it, by their ids. `notes` say what else
    happened to texts: characters that the vocabulary lacks, for example. `warnings` say what the
    data have and the model will not learn. `items` are conversations, pairs or labelled answers to
    train on; `summaries` are of preferences, by the key of their source.
    """

    stage: str
    rows: int
    items: int
    whole: bool
    first: list[str]
    specials: dict[int, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    summaries: dict[str, Summary]

    @property
    def what(self) -> str:
        """What the items are, in words. The sources of a job are of one kind."""
        return next((one.what for one in self.summaries.values()), RECORDS[self.stage])

    def passes(self, job: Job) -> float:
        """Return how often the stage trains on each of these rows."""
        section = job.section(self.stage)
        if section.steps is None:
            return section.passes
        return section.steps * section.global_batch / self.rows


def count(job: Job, stage: str) -> Counted | None:
    """Return what the data of a stage give; None if their ids are not known yet, because the
    tokenizer is trained later.

    Raises BadInput for data that can't be used, and for too few of them to fill one batch.
    """
    if job.tokenizer is not None and job.tokenizer.train is not None:
        return None
    copy = job.model_copy(deep=True)
    section = copy.conversations(stage)
    whole = keep_first_records(section.sources)
    if stage == "sft" or not whole:  # too few conversations are refused below, with what would do
        section.global_batch = 1
    show = {
        "sft": _first_conversation,
        "prefer": _first_preference,
        "reinforce": _first_prompt,
    }[stage]
    source = find_input(copy, section.sources[0], f"{stage}.sources.0")
    with tempfile.TemporaryDirectory(prefix="pion-count-") as place:
        folder = Path(place)
        tokenizer = tokenizer_of_base(job, folder / "base")
        report = prepare_part(copy, stage, folder / "rows", lambda message: None, tokenizer).report
        file = folder / "rows/tokenizer.json"
        own = Tokenizer.from_file(file)
        with closing(ChatFormat(file, own)) as written:
            first, ids = show(copy, source, own, written)
    present, sources = set(ids), report["sources"]
    summaries: dict[str, Summary] = {}
    if stage == "prefer":
        summaries = _summaries([source["preferences"] for source in sources])
        items = [summary.train.items for summary in summaries.values()]
    else:
        items = [source.get("train_conversations", source["train_rows"]) for source in sources]
    found = Counted(
        stage,
        rows=report["train_rows"],
        items=sum(items),
        whole=whole,
        first=first,
        specials={token: text for text, token in own.special_ids.items() if token in present},
        notes=tuple(words for source in sources for words in source.get("remarks", ())),
        warnings=tuple(words for one in (report, *sources) for words in one.get("warnings", ())),
        summaries=summaries,
    )
    if stage == "sft" and whole and found.rows < job.section("sft").global_batch:
        raise _too_few_conversations(job, found)
    return found


def _summaries(records: Iterable[Any]) -> dict[str, Summary]:
    """Return what `prepare` recorded of each source of preferences, by the source's key."""
    return {
        f"prefer.sources.{number}": build(closed_record(Summary), record, "what prepare counted")
        for number, record in enumerate(records)
    }


def _first_conversation(
    job: Job, found: Input, tokenizer: Tokenizer, written: ChatFormat
) -> tuple[list[str], Iterable[int]]:
    """Return the lines that show the first conversation, and its ids."""
    _, talk = next(conversations(job, found, own=written.own))
    (examples,) = learned_from(written, [talk])
    shown = examples.tokenized[-1]  # of a split one, the example with all turns
    return [marked_text(tokenizer, shown)], shown.ids.tolist()


def _first_preference(
    job: Job, found: Input, tokenizer: Tokenizer, written: ChatFormat
) -> tuple[list[str], Iterable[int]]:
    """Return the lines that show the first usable preference, and its ids; of the first LOOKED_AT,
    none may be usable."""
    how = preference_format(written, job.seq_len("prefer"), job.model_config_resolved().seq_len)
    for _, read in zip(range(LOOKED_AT), preferences(job, found)):
        if isinstance(read.preference, str):
            continue
        (outcome,) = how.outcomes([read.preference])
        if isinstance(outcome, Usable):
            ids = np.concatenate([side.sequence.ids for side in outcome.item])
            return marked_preference(tokenizer, outcome), ids.tolist()
    return [], ()


def _first_prompt(
    job: Job, found: Input, tokenizer: Tokenizer, written: ChatFormat
) -> tuple[list[str], Iterable[int]]:
    """Return the lines that show the first usable prompt, and its ids; of the first LOOKED_AT,
    none may be usable."""
    for one, _, _ in islice(questions(job, found), LOOKED_AT):
        if isinstance(one, Question):
            ids = prompt_ids(written, one)
            shown = Tokenized(np.array(ids), np.zeros(len(ids), bool))
            answer = (
                [] if one.answer is None else [f"right answer: {beginning(str(one.answer), 200)}"]
            )
            return [marked_text(tokenizer, shown), *answer], ids
    return [], ()


def _too_few_conversations(job: Job, found: Counted) -> BadInput:
    section = job.section("sft")
    return BadInput(
        f"{found.items:,} conversations fill {found.rows:,} rows of "
        f"{job.sft_seq_len:,} tokens, and one batch needs {section.global_batch:,} "
        f"(sft.global_batch). Give sft.global_batch={better_batch(job, found)}, or more "
        "conversations" + "".join(f". {words}" for words in found.warnings)
    )


def better_batch(job: Job, counted: Counted) -> int:
    """Return the largest power of 2, or 1, with which the rows of the passes that a job asks for
    make FEWEST_STEPS steps; a job that gives steps is taken to ask for one pass."""
    section = job.section(counted.stage)
    passes = section.passes if section.steps is None else 1.0
    most = int(passes * counted.rows / FEWEST_STEPS)
    return 1 << (most.bit_length() - 1) if most else 1


def keep_first_records(sources: Iterable[Source]) -> bool:
    """Let sources on the Hub give at most SAMPLED records; return whether these are all."""
    whole = True
    for source in sources:
        if isinstance(source, HubDataset):
            most = source.max_documents
            whole = whole and most is not None and most <= SAMPLED
            source.max_documents = SAMPLED if most is None else min(most, SAMPLED)
    return whole


# ---------------------------------------------------------------- how long a job takes


def lacking(job: Job) -> list[str]:
    """Return the stages of which it depends on rows that are not known how long they take: their
    steps do, or the pass of their reference."""
    sections = {stage: job.section(stage) for stage in job.train_stages}
    return [
        stage
        for stage, section in sections.items()
        if not section.steps_are_known or (job.needs_reference(stage) and section.rows is None)
    ]


def expect_rows(job: Job) -> str | None:
    """Tell the job how many rows its conversations and preferences give, where the time that it
    takes depends on them.

    Returns what is not certain about it, as a sentence; None if everything is. Raises StoreError,
    and BadInput for data that can't be used, unless only the pass of a reference depends on them.
    """
    if not lacking(job):
        return None
    head = RunState(open_store(job.store), job.name).read()
    if head is not None:
        know_rows(job, head)
    return "; ".join(filter(None, [_expect(job, stage) for stage in lacking(job)])) or None


def _expect(job: Job, stage: str) -> str | None:
    """Tell the job the rows of a stage. Return what is not certain about what follows from them."""
    section = job.section(stage)
    is_known, skipped = section.steps_are_known, f"the reference pass of {stage} is left out"
    try:
        counted = count(job, stage)
    except PionError as error:
        if not is_known:
            raise
        return f"{skipped}: {error}"  # the checks say it, and the steps are known
    if counted is None and is_known:
        return f"{skipped}: its rows are not known before prepare"
    if counted is None:
        return f"the steps of {stage} follow from its rows, which are not known before prepare"
    section.know_rows(counted.rows)
    if counted.whole:
        return None
    what = f"the reference pass of {stage} is" if is_known else f"the steps of {stage} are"
    return (
        f"{what} of the first {SAMPLED:,} {RECORDS[stage]} of a data set: all of them take as many "
        "times longer as there are more"
    )
