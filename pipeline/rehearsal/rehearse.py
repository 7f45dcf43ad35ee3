"""Rehearse a job: its own `prepare` reads the head of each source, so that everybody who says in
advance what a run will do counts the same rows and sees the same mistakes.

Small sources are read whole, and then rows are exact. Of a larger source, or of a vocabulary that
is trained on one, rows are estimated from the head.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pion.data.arrays import open_shard
from pion.data.chat.chat_format import ChatFormat
from pion.data.preference.summary import Summary
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import PionError
from pipeline.base.keep import tokenizer_of_base
from pipeline.data.foreign_shards import HELD_OUT, check_documents
from pipeline.data.preferences import preferences
from pipeline.data.prepared import SPLITS
from pipeline.data.prompts import questions
from pipeline.data.sources import SAMPLED, Input, Shown, conversations, find_input, texts
from pipeline.data.tokenizer import named_tokenizer
from pipeline.data.ways import WAYS
from pipeline.job import HubNpyShards, HubTexts, Job, PythonDocs
from pipeline.job.digest import digest_job
from pipeline.job.stages import WORDS, data_key
from pipeline.machine.time_limit import within_or
from pipeline.rehearsal.head import Head, Shards, cut, train_stand_in
from pipeline.stages.prepare import check_splits, prepare_part, require_a_batch
from pipeline.state.head import Head as HeadRecord
from pipeline.state.head import StageRecord
from pipeline.state.record_json import build, closed_record
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import know_rows_of
from pipeline.state.stores import open_store

# A store that needs more seconds to answer is not waited for.
STORE_SECONDS = 8.0


@dataclass(frozen=True)
class StageData:
    """What the data of a stage give.

    Attributes:
        rows: to train on, of each source.
        items: documents, conversations, pairs or labelled answers, or prompts to train on.
        exact: whether these were counted, and not estimated from heads.
        steps: that the stage trains.
        tokens: of all these steps.
        passes: how often the stage trains on each of these rows.
        of_hub: whether they are only of the first records of a data set on the Hub.
        first: lines that show the first usable record as the model will see it.
        specials: the special tokens in it, by their ids.
        notes: what happened to texts, such as characters that the vocabulary lacks.
        warnings: what the data have and the model will not learn.
        summaries: of preferences, by the key of their source.
        fits: the tokens of a row that 95 % of the conversations fit in; 0 of others.
    """

    stage: str
    rows: tuple[int, ...]
    items: int
    exact: bool
    steps: int = 0
    tokens: int = 0
    passes: float = 0.0
    of_hub: bool = False
    first: Sequence[str] = ()
    specials: Mapping[int, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    fits: int = 0

    @property
    def all_rows(self) -> int:
        """The rows of all sources."""
        return sum(self.rows)

    @property
    def what(self) -> str:
        """What the items are, in words. The sources of a job are of one kind."""
        return next((one.what for one in self.summaries.values()), WORDS[self.stage].records)

    def trained_by(self, job: Job) -> StageData:
        """Return the data with the steps that the job trains on them, if it knows its rows."""
        section, tokens = job.section(self.stage), job.trained_tokens(self.stage)
        if tokens is None:
            return self
        steps, rows = section.total_steps, max(1, self.all_rows)
        passes = steps * section.global_batch / rows if section.steps else section.passes
        return replace(self, steps=steps, tokens=tokens, passes=passes)


@dataclass(frozen=True)
class Rehearsed:
    """What a job's data give, by stage.

    Attributes:
        job: the job, which knows the rows of these stages.
        stages: what the data of a stage give; not of stages whose data can't be read in advance:
            text on the Hub, and the documentation of Python.
        failed: why the data of a stage can't be used, or could not be read.
        text_bytes: about how much text `data` has; None: it is not all in files.
        prepared: whether the run has prepared the data already, so that nothing was rehearsed.
    """

    job: Job
    stages: Mapping[str, StageData]
    failed: Mapping[str, PionError] = field(default_factory=dict)
    text_bytes: float | None = None
    prepared: bool = False

    def rows_of(self, stage: str) -> tuple[int, ...]:
        """Return the rows to train on of each source of a stage; () if they are not known."""
        return self.stages[stage].rows if stage in self.stages else ()


def rehearse(job: Job, stages: Iterable[str] | None = None, most: float = math.inf) -> Rehearsed:
    """Rehearse these stages of a job, all if None, and tell the job their rows. Of each source, at
    most about `most` bytes are read.

    Raises BadInput if the tokenizer of the model to start from can't be found.
    """
    if (prepared := _prepared(job)) is not None:
        return prepared
    trains = job.tokenizer is not None and job.tokenizer.train is not None
    parts = [
        part
        for part in digest_job(job).data
        if stages is None or part in stages or (trains and part == "pretrain")
    ]
    done: dict[str, StageData] = {}
    failed: dict[str, PionError] = {}
    with tempfile.TemporaryDirectory(prefix="pion-rehearsal-") as name:
        place = Path(name)
        head = cut(job, {*map(data_key, parts)}, place / "heads", most)
        tokenizer = tokenizer_of_base(job, place / "base")
        for part in parts:
            # The documentation of Python takes long, and nothing is fetched.
            if part == "pretrain" and any(
                isinstance(one, PythonDocs | HubTexts | HubNpyShards) for one in job.data.sources
            ):
                continue
            if trains and "pretrain" in failed:
                break  # there is no vocabulary
            try:
                if trains and part != "pretrain" and tokenizer is None:
                    tokenizer = train_stand_in(head, part, place)
                    if tokenizer is None:
                        continue
                done[part] = _of_part(job, head, part, place / part, tokenizer)
            except PionError as error:
                error.args = (head.restore_names(str(error)),)
                failed[part] = error
            else:
                tokenizer = tokenizer or (place / part / "tokenizer.json" if trains else None)
    known = [head.text_bytes.get(f"data.sources.{n}") for n in range(len(job.data.sources))]
    total = sum(size for size in known if size is not None)
    return Rehearsed(job, done, failed, None if None in known else total)


@contextmanager
def prepared_head(job: Job, part: str) -> Iterator[Path]:
    """Prepare the head of a part of the data of a model to start from, in a folder that is deleted
    afterwards. Raises BadInput as `prepare_part` does."""
    with tempfile.TemporaryDirectory(prefix="pion-rehearsal-") as name:
        head = cut(job, {part}, Path(name, "heads"))
        tokenizer = tokenizer_of_base(job, Path(name, "base"))
        prepare_part(head.job, part, Path(name, part), lambda message: None, tokenizer)
        yield Path(name, part)


def read_head(job: Job) -> HeadRecord | None:
    """Return the state of the job's run; None if it has not begun, or the store does not answer."""
    return within_or(None, STORE_SECONDS, RunState(open_store(job.store), job.name).read)


def prepare_record(job: Job) -> StageRecord | None:
    """Return what the run recorded of the job's prepared data; None if the data are not prepared,
    or the store does not answer."""
    head = read_head(job)
    record = None if head is None else head.stages.get("prepare")
    is_done = record is not None and record.digest == digest_job(job).stages["prepare"]
    return record if is_done else None


def _prepared(job: Job) -> Rehearsed | None:
    """Return what the run has counted, and tell the job; None if it has not prepared the data."""
    record = prepare_record(job)
    if record is None:
        return None
    know_rows_of(job, record.result)
    done = {}
    for stage in job.train_stages:
        report = record.result.get(stage, {})
        rows = tuple(source["train_rows"] for source in report.get("sources", ()))
        done[stage] = StageData(stage, rows, sum(rows), exact=True).trained_by(job)
    return Rehearsed(job, done, prepared=True)


def _of_part(job: Job, head: Head, part: str, folder: Path, tokenizer: Path | None) -> StageData:
    """Return what a part of the data gives, and tell the job. Raises as `prepare_part` does."""
    data = None
    if part != "pretrain" or head.texts:
        data = _rehearsed(head, part, folder, tokenizer)
    if part == "pretrain" and len(head.texts) < len(job.data.sources):
        data = _with_shards(job, data, tokenizer)
    assert data is not None
    if part not in job.train_stages:
        return data
    job.section(part).know_rows(data.all_rows)
    return data.trained_by(job)


def _rehearsed(head: Head, part: str, folder: Path, tokenizer: Path | None) -> StageData:
    """Prepare what the head of a part has, and return what the part has."""
    section = data_key(part)
    report = prepare_part(head.job, part, folder, lambda message: None, tokenizer).report
    sources = report["sources"]
    keys = [f"{section}.sources.{number}" for number in range(len(sources))]
    factors = [head.factor(head.restore_names(key)) for key in keys]
    rows = [round(one["train_rows"] * times) for one, times in zip(sources, factors)]
    counts = [
        one.get("train_conversations", one.get("documents", one["train_rows"])) for one in sources
    ]
    record, where = closed_record(Summary), "what prepare counted"
    summaries = {
        key: build(record, one["preferences"], where)
        for key, one in zip(keys, sources)
        if "preferences" in one
    }
    if summaries:
        counts = [summary.train.items for summary in summaries.values()]
    show = WAYS[part].show
    first, specials = ((), {}) if show is None else _first(head.job, part, folder, show)
    return StageData(
        part,
        tuple(rows),
        round(sum(count * head.more(head.restore_names(key)) for key, count in zip(keys, counts))),
        exact=head.is_whole(section),
        of_hub=any(head.factors.get(key, 1.0) is None for key in keys),
        first=first,
        specials=specials,
        notes=[head.restore_names(words) for one in sources for words in one.get("remarks", ())],
        warnings=[
            head.restore_names(words)
            for one in (report, *sources)
            for words in one.get("warnings", ())
        ],
        summaries=summaries,
        fits=max(one.get(f"{split}_fits", 0) for one in sources for split in SPLITS),
    )


# ---------------------------------------------------------------- the first usable record

# The first usable record is looked for in so many.
LOOKED_AT = 64


def records_of(job: Job, origin: Input, *, own: bool) -> Iterator[Any]:
    """Yield the records of a source as `prepare` reads them: documents, conversations (for Pion's
    `own` chat format), preferences or prompts. Raises BadInput for a record that can't be used."""
    readers: dict[str, Callable[[Job, Input], Iterator[Any]]] = {
        "data": texts,
        "sft": partial(conversations, own=own),
        "prefer": preferences,
        "reinforce": partial(questions, own=own),
    }
    return readers[origin.key.partition(".")[0]](job, origin)


def _first(
    job: Job, stage: str, folder: Path, show: Callable[[Job, Any, ChatFormat], Shown | None]
) -> tuple[Sequence[str], dict[int, str]]:
    """Return the lines that show the first usable record, and the special tokens in it."""
    path = folder / "tokenizer.json"
    tokenizer, source = Tokenizer.from_file(path), job.conversations(stage).sources[0]
    origin = find_input(job, source, f"{stage}.sources.0")
    with closing(ChatFormat(path, tokenizer)) as written:
        records = islice(records_of(job, origin, own=written.own), LOOKED_AT)
        shown = (show(job, record, written) for record in records)
        lines, ids = next(filter(None, shown), ([], ()))
    present = set(ids)
    return lines, {n: text for text, n in tokenizer.special_ids.items() if n in present}


# ---------------------------------------------------------------- tokenized files


def _with_shards(job: Job, texts: StageData | None, tokenizer: Path | None) -> StageData:
    """Return what the text and the tokenized files of a job give. Raises BadInput for files that
    can't be used, and if all fill no batch."""
    of_texts, rows = iter(() if texts is None else texts.rows), []
    for number, source in enumerate(job.data.sources):
        found = find_input(job, source, f"data.sources.{number}")
        rows.append(
            _of_shards(job, found, tokenizer) if isinstance(source, Shards) else next(of_texts)
        )
    exact = texts is None or texts.exact
    if exact:
        require_a_batch(job, "pretrain", sum(rows))
    whole = texts or StageData("pretrain", (), 0, exact=True)
    return replace(whole, rows=tuple(rows))


def _of_shards(job: Job, found: Input, tokenizer: Path | None) -> int:
    """Return the training rows of tokenized files. Raises BadInput if a split has none, or if no
    row shows where a document begins and the job needs that."""
    seq_len = job.data.seq_len
    path = tokenizer or named_tokenizer(job)
    if path is not None and job.within_documents:
        check_documents([found], Tokenizer.from_file(path), seq_len)
    every = sum(len(open_shard(file, seq_len)) for file in found.files)
    held_out = min(every, max(1, int(every * HELD_OUT)))
    report = {"train_rows": every - held_out, "held_out_rows": held_out}
    check_splits(report, found, seq_len, job.data.held_out)
    return every - held_out


# ---------------------------------------------------------------- how long a job takes


def lacking(job: Job) -> list[str]:
    """Return the stages of which it depends on rows that are not known how long they take: their
    steps do, or the pass of their reference."""
    sections = {stage: job.section(stage) for stage in job.train_stages}
    return [
        stage
        for stage, section in sections.items()
        if not section.steps_are_known or (section.needs_reference and section.rows is None)
    ]


def expect_rows(job: Job) -> str | None:
    """Rehearse the stages whose time depends on their rows.

    Returns what is not certain about it, as a sentence; None if everything is. Raises BadInput for
    data that can't be used, unless only the pass of a reference depends on them.
    """
    missing = lacking(job)
    known = {stage: job.section(stage).steps_are_known for stage in missing}
    rehearsed = rehearse(job, missing) if missing else Rehearsed(job, {})
    words = (_uncertain(rehearsed, stage, is_known) for stage, is_known in known.items())
    return "; ".join(filter(None, words)) or None


def _uncertain(rehearsed: Rehearsed, stage: str, is_known: bool) -> str | None:
    """Return what is not certain about what follows from the rows of a stage."""
    data, error = rehearsed.stages.get(stage), rehearsed.failed.get(stage)
    if error is not None and not is_known:
        raise error
    if data is None and is_known:
        why = error or "its rows are not known before prepare"
        return f"the reference pass of {stage} is left out: {why}"
    if data is None:
        return f"the steps of {stage} follow from its rows, which are not known before prepare"
    if not data.of_hub:
        return None
    what = f"the reference pass of {stage} is" if is_known else f"the steps of {stage} are"
    return (
        f"{what} of the first {SAMPLED:,} {WORDS[stage].records} of a data set: all of them take "
        "as many times longer as there are more"
    )
