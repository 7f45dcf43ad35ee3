"""prepare: from the job's sources to a tokenizer and fingerprinted shards of training rows.

Each part of the data has its own folder (layout: pipeline/data/prepared.py). After an interruption
the work resumes after the last finished shard. If a folder is finished, only its report is read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.template_source import DATE_FILE, TEMPLATE_FILE
from pion.data.shards import Rows, Shard
from pion.data.tokens.token_names import TOKENIZER_CONFIG
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput, TooFewRows
from pion.files import make_folder, sha256_file, write_atomically
from pion.untrusted import parse_object, read_file
from pipeline.console.formats import short_amount
from pipeline.console.messages import Note, Say
from pipeline.data.cleaning.decided import clean
from pipeline.data.continuations import continuation_questions
from pipeline.data.fingerprint import (
    check_unchanged,
    files_digest,
    fingerprint_of,
    rows_fingerprint,
)
from pipeline.data.foreign_shards import check_documents
from pipeline.data.prepared import (
    CHOICES,
    DATASET,
    PreparedData,
    PreparedSource,
    check_mixes,
    open_data,
)
from pipeline.data.remarks import shortened
from pipeline.data.source_reading import PrepareOptions, SourceReading, read_text
from pipeline.data.sources import Input, find_input
from pipeline.data.splits import RowFormat
from pipeline.data.tokenizer import check_fits, origin, put_tokenizer, ready_tokenizer
from pipeline.data.ways import WAYS
from pipeline.job import Job
from pipeline.job.data_section import share_rows
from pipeline.job.stages import CONVERSING, WORDS, data_key
from pipeline.state.shared.unfinished import PIECES

# What is known of the documents while they are cleaned.
CLEANING = "clean"
PINNED = "commit.json"
# What was prepared here so far was made from this content. A hidden file is not part of the data.
FINGERPRINT = ".fingerprint"


@dataclass(frozen=True)
class Prepared:
    """A part of the data that is ready.

    Attributes:
        folder: where it is: in the folder that was given, or where it was found.
        fingerprint: names what it was made from.
        sources: what it was made from, in words.
        report: what was counted, and how fast.
        rows: the fingerprints of the rows of each source; none if they were found, or decided
            together with those of other sources.
    """

    folder: Path
    fingerprint: str
    sources: tuple[str, ...]
    report: dict[str, Any]
    rows: Sequence[str] = field(default=(), compare=False)


def prepare_part(
    job: Job,
    part: str,
    folder: Path,
    say: Say,
    tokenizer: Path | None = None,
    how: PrepareOptions = PrepareOptions(),  # noqa: B008
) -> Prepared:
    """Prepare a part of the data in `folder`, unless `how` finds it.

    `tokenizer` is that of pretraining, or of the model to start from; None: the job says which.

    Raises BadInput for every input that can't be used, if possible before anything is tokenised,
    for a conversation without an assistant turn, for preferences that the loss can't learn from,
    and for fewer rows than one global batch.
    """
    by_job = tokenizer is None
    with _writing(folder):
        inputs = _find_inputs(job, part, folder)
        WAYS[part].check(job, inputs)
        put_tokenizer(job, folder, tokenizer, conversations=part in CONVERSING)
        trains = by_job and job.tokenizer is not None and job.tokenizer.train is not None
        fingerprint = fingerprint_of(job, part, inputs, folder, say, trains=trains)
        _forget_other_content(folder, fingerprint, trains=trains)
        ready = how.find(fingerprint) or folder
        rows: Sequence[str] = ()
        if ready == folder and not (folder / DATASET).exists():
            rows = _prepare(_Part(job, part, folder, say, how), inputs, fingerprint, by_job=by_job)
        data = open_data(ready)
        report = data.report | ({"tokenizer": origin(job)} if by_job else {})
        check_fits(job, Tokenizer.from_file(data.tokenizer_path), data.tokenizer_path, by_job)
    names = tuple(source_input.name for source_input in inputs)
    # Whoever prepared the data may have other names for the same sources.
    named = zip(report.get("sources", ()), names, inputs, strict=False)
    sources = [{**one, "name": name, "files": files_digest(it)} for one, name, it in named]
    prepared = Prepared(ready, fingerprint, names, {**report, "sources": sources}, rows)
    if part in job.train_stages:
        _check_rows(job, prepared, part)
    return prepared


@dataclass(frozen=True)
class _Part:
    """A part of the job's data, its folder, who hears how it proceeds, and how it is prepared."""

    job: Job
    name: str
    folder: Path
    say: Say
    how: PrepareOptions


def _forget_other_content(folder: Path, fingerprint: str, *, trains: bool) -> None:
    """Delete what an interrupted start prepared in the folder from other content, its trained
    tokenizer too."""
    known = folder / FINGERPRINT
    before = known.read_text("utf-8") if known.exists() else None
    if before != fingerprint:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name in (DATASET, CHOICES) or (trains and path.name == "tokenizer.json"):
                path.unlink()
        write_atomically(known, fingerprint.encode())


def _prepare(part: _Part, inputs: list[Input], fingerprint: str, *, by_job: bool) -> Sequence[str]:
    """Write the rows of every source, then what `open_data` reads. Return the fingerprint of the
    rows of each source, unless all sources decide together which documents are left out."""
    started = time.monotonic()
    job, folder, seq_len = part.job, part.folder, part.job.seq_len(part.name)
    section, way, texts_only = job.data_section(part.name), WAYS[part.name], part.name == "pretrain"
    cleaned = None
    if texts_only and job.data.clean is not None:
        cleaned = clean(job, inputs, folder / CLEANING, part.say)
    keep = None if cleaned is None else cleaned.keep
    tokenizer, tokenizer_report = ready_tokenizer(
        job, inputs, folder, by_job=by_job, say=part.say, keep=keep
    )
    if texts_only and job.within_documents:
        check_documents(inputs, tokenizer, seq_len)
    alone = inputs if cleaned is None else ()
    keys = [rows_fingerprint(job, part.name, one, folder) for one in alone]
    there = {n: part.how.rows_of(key, folder / str(n)) for n, key in enumerate(keys)}
    new = [one for number, one in enumerate(inputs) if there.get(number) is None]
    # What is left out of the text is not left out of pieces.
    with (
        part.how.tasks_for(new if way.in_pieces and not cleaned else []) as tasks,
        closing(ChatFormat(folder / "tokenizer.json", tokenizer)) as written,
    ):
        todo = []
        for number, found in enumerate(inputs):
            key = _key(fingerprint, number, folder)
            rows = RowFormat(seq_len, job.data.shard_rows, key, part.how.finished)
            reading = SourceReading(job, found, keep and keep(number), tasks)
            if texts_only and found in new:
                reading = read_text(reading, folder, part.how.piece_bytes, part.say)
            todo.append((reading, folder / str(number), rows))
        reports = []
        for number, (reading, place, rows) in enumerate(todo):
            report = there.get(number) or way.write(reading, written, place, rows, part.say)
            check_splits(report, reading.found, seq_len, section.held_out)
            reports.append({"name": reading.found.name} | report)
    sources = _sources(part, reports)
    report = _totals(reports, tokenizer_report, started) | _often(part, sources, reports)
    if cleaned is not None:
        report["cleaned"] = cleaned.receipt()
    data = PreparedData(folder, part.name, sources, report)
    if texts_only:
        _write_choices(data, tokenizer, job.seed)
    _finish(job, inputs, data, part.say)
    return keys


def _sources(part: _Part, reports: Sequence[dict[str, Any]]) -> tuple[PreparedSource, ...]:
    """Return the sources with their weights, which may be their rows."""
    sources = part.job.data_section(part.name).sources
    weights = [source.weight for source in sources]
    if share_rows(part.name, sources):
        rows = [report["train_rows"] for report in reports]
        # A block of 1,024 rows of a mix has a row of each source.
        weights = [max(count, sum(rows) / 800) for count in rows]
    return tuple(
        PreparedSource(source.model_dump()["kind"], weight, str(number))
        for number, (source, weight) in enumerate(zip(sources, weights))
    )


def _often(
    part: _Part, sources: Sequence[PreparedSource], reports: Sequence[dict[str, Any]]
) -> dict[str, list[str]]:
    """Return warnings of sources that are read more than twice in a pass over all rows."""
    key, otherwise = data_key(part.name), "Without weights, it reads each source once"
    if key == "data":
        otherwise = "With the number of its rows as `weight`, each is read once"
    rows = [report["train_rows"] for report in reports]
    share = sum(rows) / sum(source.weight for source in sources)
    warnings = [
        f"a pass over the rows of all sources reads {key}.sources.{source.folder} {times:.3g} "
        f"times, and others less often. {otherwise}"
        for source, count in zip(sources, rows)
        if not (key == "data" and part.job.mix_phases)
        and (times := source.weight * share / count) > 2
    ]
    return {"warnings": warnings} if warnings else {}


# ---------------------------------------------------------------- inputs


def _find_inputs(job: Job, part: str, folder: Path) -> list[Input]:
    """Find all sources, before any other work; pin Hub commits in the folder."""
    path, section = folder / PINNED, data_key(part)
    pinned = parse_object(read_file(path), str(path)) if path.exists() else {}
    inputs = [
        find_input(job, source, f"{section}.sources.{number}", pinned.get(str(number)))
        for number, source in enumerate(job.data_section(part).sources)
    ]
    commits = {str(number): found.commit for number, found in enumerate(inputs) if found.commit}
    if commits and commits != pinned:
        write_atomically(path, json.dumps(commits).encode())
    return inputs


def _key(fingerprint: str, number: int, folder: Path) -> str:
    """Return the key of the rows of a source: the same on each machine."""
    files = [folder / name for name in (TEMPLATE_FILE, TOKENIZER_CONFIG, DATE_FILE)]
    files = [folder / "tokenizer.json", *(path for path in files if path.is_file())]
    identity = [fingerprint, number, *map(sha256_file, files)]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


# ---------------------------------------------------------------- checks and the end


def check_splits(report: dict[str, Any], found: Input, seq_len: int, share: float) -> None:
    """Raise TooFewRows if there is nothing to train or to evaluate on."""
    section = found.key.partition(".")[0]
    for split, wish in (("train", "lower"), ("held_out", "raise")):
        if report[f"{split}_rows"]:
            continue
        wish = f"{wish} {section}.held_out (now {share})"
        if section != "data":
            words = "is held out" if split == "held_out" else "is left to train on"
            many, one = WORDS[section].records, WAYS[section].held_out
            fits = report.get(f"{split}_fits", 0)
            why = shortened(report, seq_len, split)[0] if fits else ""
            why = why or f"Add {many}, or {wish}"
            message = f"{found.key} ({found.name}): too few {many}: no {one} {words}. {why}."
            raise TooFewRows(message, split, fits if fits > seq_len else 0)
        message = (
            f"{found.key} ({found.name}): too little text: the {split} split does not fill a row "
            f"of {seq_len:,} ids. Add text, lower {section}.seq_len, or {wish}."
        )
        raise TooFewRows(message, split, 0)


def _check_rows(job: Job, data: Prepared, stage: str) -> None:
    rows = data.report.get("train_rows")
    if type(rows) is not int:
        raise BadInput(
            f"{data.folder / DATASET}: report.train_rows is {rows!r:.200}; it must be a whole "
            "number. Prepare the data again: --redo prepare"
        )
    why = [words for source in data.report["sources"] for words in source.get("warnings", ())]
    require_a_batch(job, stage, rows, why)
    if stage == "pretrain":
        check_mixes(job, data.folder)


def require_a_batch(job: Job, stage: str, rows: int, why: Sequence[str] = ()) -> None:
    """Raise BadInput if a stage's rows do not fill a batch, with a batch that fits. `why` may say
    what is not in them."""
    section, way = job.section(stage), WAYS[stage]
    if rows < section.global_batch:
        raise BadInput(
            f"{stage}: {way.few.format(rows=rows, seq_len=job.seq_len(stage))}, but "
            f"{stage}.global_batch needs {section.global_batch:,}. Give {stage}.global_batch="
            f"{section.batch_for(rows)}{way.more} or more data."
            + "".join(f" {words}." for words in why)
        )


def _totals(
    sources: list[dict[str, Any]], tokenizer: dict[str, Any], started: float
) -> dict[str, Any]:
    names = ("train_rows", "held_out_rows", "train_tokens", "held_out_tokens", "bytes", "documents")
    return {
        **tokenizer,
        **{name: sum(s[name] for s in sources if name in s) for name in names},
        "seconds": round(time.monotonic() - started, 1),
        "sources": sources,
    }


def _write_choices(data: PreparedData, tokenizer: Tokenizer, seed: int) -> None:
    held_out = [
        Rows(data.manifest(source, "held_out"), partial(_path, data.folder / source.folder))
        for source in data.sources
    ]
    questions = continuation_questions(held_out, tokenizer, seed)
    if questions:
        lines = "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
        write_atomically(data.folder / CHOICES, lines.encode())


def _path(folder: Path, shard: Shard) -> Path:
    return folder / "held_out" / shard.name


def _finish(job: Job, inputs: list[Input], data: PreparedData, say: Say) -> None:
    try:
        check_unchanged(job, inputs)
    except BadInput:
        # The rows are of no content that has this fingerprint, also if it is restored.
        (data.folder / FINGERPRINT).unlink(missing_ok=True)
        raise
    unfinished = (f"{source.folder}/{PIECES}" for source in data.sources)
    for name in (CLEANING, *unfinished):
        shutil.rmtree(data.folder / name, ignore_errors=True)
    described = {
        "part": data.part,
        "sources": [vars(source) for source in data.sources],
        "report": data.report,
    }
    write_atomically(data.folder / DATASET, json.dumps(described, indent=1).encode())
    for text in _about(data):
        say(Note(text))


def _about(data: PreparedData) -> Iterator[str]:
    """Yield what people should know of the data."""
    report = data.report
    speeds = [s["mb_per_second"] for s in report["sources"] if "mb_per_second" in s]
    yield (
        f"{data.part} data: {report['train_rows']:,} rows ({short_amount(report['train_tokens'])} "
        f"tokens) to train on, {report['held_out_rows']:,} held out"
        + (f"; tokenized at {max(speeds):.1f} MB/s" if speeds else "")
    )
    yield from (f"warning: {words}" for words in report.get("warnings", ()))
    for source in report["sources"]:
        name = source["name"]
        yield from (f"{name}: {remark}" for remark in source.get("remarks", ()))
        yield from (f"warning: {name}: {words}" for words in source.get("warnings", ()))
        if source.get("refusals"):
            refused = source["train_refused"] + source["held_out_refused"]
            first = "; ".join(source["refusals"])
            yield f"{name}: {refused:,} records can't be used: {first}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make the folder; explain files that can't be read or written."""
    make_folder(folder)
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{error.filename or folder}: {error.strerror or error}. The shards finished so far "
            "are kept: fix the problem and run the same command again."
        ) from None
