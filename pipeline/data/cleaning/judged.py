"""Judge every document of the text sources alone, and keep its numbers in files.

The files hold an entry for each document, of all sources in order. An interrupted call resumes
after the documents that `progress.json` counts: what the files have beyond them is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pion.clean.copies import SignatureFile
from pion.clean.measure import MeasuredText, measure
from pion.clean.rules import Rules, Verdict, judge_alone
from pion.clean.signature import HASHES
from pion.data.overlap.found import Found, nothing_found, read_found
from pion.data.overlap.index import Index
from pion.data.overlap.search import search
from pion.errors import BadInput
from pion.files import unwritable, write_atomically
from pion.untrusted import LARGEST_LISTING, open_file, parse_object, read_file
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.sources import Input, documents, is_held_out
from pipeline.job import Job
from pipeline.machine.kill_points import mark
from pipeline.machine.time_limit import attended_items

PROGRESS = "progress.json"
# Documents are judged in batches of about so many characters, and the files are complete after
# about so many bytes of text.
BATCH_CHARS = 1 << 20
SAVED_BYTES = 64 << 20
# The entries of a document: file, type, numbers.
ENTRIES = {
    "hashes": (np.uint64, 1),
    "signatures": (np.uint16, HASHES),
    "verdicts": (np.uint8, 1),
    "items": (np.int32, 1),
}


@dataclass(frozen=True)
class Judged:
    """What is known of N documents before they are compared.

    Attributes:
        counts: how many documents each source has.
        sizes: how many bytes of text each source has.
        hashes: (N,) uint64: see `MeasuredText`.
        verdicts: (N,) uint8: see `Verdict`.
        items: (N,) int32: the item of an evaluation set that a document holds; -1: none.
        signatures: see `MeasuredText`.
        found: what the search for the sets has found.
    """

    counts: list[int]
    sizes: list[int]
    hashes: np.ndarray
    verdicts: np.ndarray
    items: np.ndarray
    signatures: SignatureFile
    found: Found


@dataclass
class _Progress:
    """How many documents of each source are in the files, and the bytes of their texts."""

    counts: list[int]
    sizes: list[int]
    found: Found

    @property
    def documents(self) -> int:
        return sum(self.counts)


def judge_documents(
    job: Job, inputs: Sequence[Input], folder: Path, index: Index, say: Say
) -> Judged:
    """Judge the documents of `inputs`, and keep their numbers in files in `folder`.

    `index` has the evaluation sets. Raises BadInput as reading the inputs does, and if the files
    can't be written.
    """
    assert job.data.clean is not None
    clean = job.data.clean
    rules = Rules(clean.min_words, clean.max_words, clean.max_repetition, tuple(clean.languages))
    folder.mkdir(parents=True, exist_ok=True)
    progress = _read_progress(folder, index, len(inputs))
    try:
        with _Files(folder, progress.documents) as files:
            _judge(_Work(job, inputs, index, rules, say), progress, files)
    except OSError as error:
        raise unwritable(folder, error) from None
    hashes, verdicts, items = (_entries(folder, name) for name in ("hashes", "verdicts", "items"))
    return Judged(
        progress.counts,
        progress.sizes,
        hashes,
        verdicts,
        items,
        SignatureFile(folder / "signatures", progress.documents),
        progress.found,
    )


@dataclass(frozen=True)
class _Work:
    """What is judged, and how."""

    job: Job
    inputs: Sequence[Input]
    index: Index
    rules: Rules
    say: Say


@dataclass
class _Batch:
    """Some documents of one source: their texts, and whether each is held out."""

    source: int
    texts: list[str]
    held_out: list[bool]


def _judge(work: _Work, progress: _Progress, files: _Files) -> None:
    saved = sum(progress.sizes)

    def look() -> None:
        work.say(PrepareProgress("look for copies and bad text", sum(progress.sizes) / 1e6, "MB"))

    for batch in attended_items(_batches(work, progress.counts), look):
        encoded = [text.encode() for text in batch.texts]
        measured = measure(batch.texts)
        verdicts = judge_alone(work.rules, batch.texts, measured)
        items = _look_for_items(work.index, progress, batch, encoded, verdicts)
        files.append(measured, verdicts, items)
        progress.counts[batch.source] += len(encoded)
        progress.sizes[batch.source] += sum(map(len, encoded))
        look()
        if sum(progress.sizes) - saved >= SAVED_BYTES:
            _save(progress, files)
            saved = sum(progress.sizes)
    _save(progress, files)


def _batches(work: _Work, counts: Sequence[int]) -> Iterator[_Batch]:
    """Yield the documents that are not in the files."""
    for source, (found, done) in enumerate(zip(work.inputs, list(counts))):
        batch, size = _Batch(source, [], []), 0
        for number, document in enumerate(documents(work.job, found)):
            if number < done:
                continue
            batch.texts.append(document.text)
            batch.held_out.append(is_held_out(work.job, found, document))
            size += len(document.text)
            if size >= BATCH_CHARS:
                yield batch
                batch, size = _Batch(source, [], []), 0
        if batch.texts:
            yield batch


def _look_for_items(
    index: Index,
    progress: _Progress,
    batch: _Batch,
    encoded: Sequence[bytes],
    verdicts: np.ndarray,
) -> np.ndarray:
    """Note the items that the kept documents to train on hold, and leave these documents out.

    Return the first item of each, or -1. Held-out documents are not searched: no model trains on
    them, and the control is cut from them.
    """
    items = np.full(len(encoded), -1, dtype=np.int32)
    if not index.sets:
        return items
    first = progress.documents
    # The controls are the odd groups of items.
    groups = np.array(index.firsts)

    def note(row: int, overlapping: np.ndarray) -> None:
        of_sets = overlapping[(np.searchsorted(groups, overlapping, side="right") - 1) % 2 == 0]
        if len(of_sets):
            items[row - first] = of_sets.min()
            verdicts[row - first] = Verdict.EVALUATION

    searched = [
        (first + place, text)
        for place, text in enumerate(encoded)
        if not batch.held_out[place] and verdicts[place] == Verdict.KEPT
    ]
    search(index, searched, progress.found, on_overlap=note)
    return items


# ---------------------------------------------------------------- files


class _Files:
    """The files of the documents' numbers, open to append."""

    def __init__(self, folder: Path, documents: int) -> None:
        self.folder = folder
        self._files = {name: open(folder / name, "ab") for name in ENTRIES}  # noqa: SIM115
        for name, (kind, numbers) in ENTRIES.items():
            size = documents * numbers * np.dtype(kind).itemsize
            if (folder / name).stat().st_size < size:
                raise BadInput(
                    f"{folder / name} is shorter than {PROGRESS} says. Prepare the data again: "
                    "--redo prepare"
                )
            self._files[name].truncate(size)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, measured: MeasuredText, verdicts: np.ndarray, items: np.ndarray) -> None:
        entries = (measured.hashes, measured.signatures, verdicts, items)
        for (name, (kind, _)), numbers in zip(ENTRIES.items(), entries, strict=True):
            self._files[name].write(np.ascontiguousarray(numbers, dtype=kind).data)

    def flush(self) -> None:
        """Return once everything is on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())


def _entries(folder: Path, name: str) -> np.ndarray:
    with open_file(folder / name) as file:
        return np.fromfile(file, dtype=ENTRIES[name][0])


def _save(progress: _Progress, files: _Files) -> None:
    files.flush()
    record = {
        "counts": progress.counts,
        "sizes": progress.sizes,
        "found": progress.found.to_bytes().decode(),
    }
    write_atomically(files.folder / PROGRESS, json.dumps(record).encode())
    mark("shard")


def _read_progress(folder: Path, index: Index, sources: int) -> _Progress:
    """Return what an interrupted call has done. Raises BadInput for a damaged file."""
    path = folder / PROGRESS
    nothing = nothing_found(index)
    if not path.exists():
        return _Progress([0] * sources, [0] * sources, nothing)
    record = parse_object(read_file(path, LARGEST_LISTING), str(path))
    try:
        counts, sizes = ([int(n) for n in record[key]] for key in ("counts", "sizes"))
        if len(counts) != sources or len(sizes) != sources or min(counts + sizes) < 0:
            raise ValueError(f"{len(counts)} sources")
        found = read_found(record["found"].encode(), index, str(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{path} is damaged ({error!r:.200}). Prepare the data again: --redo prepare"
        ) from None
    return _Progress(counts, sizes, found)
