"""Judge every document of the text sources alone, and keep its numbers in a file.

The file holds an entry for each document, of all sources in order. An interrupted call resumes
after the documents that `progress.json` counts: what the file has beyond them is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pion.clean.measure import measure
from pion.clean.rules import Rules, Verdict, judge_alone
from pion.clean.signature import HASHES
from pion.data.overlap.found import Found, nothing_found, read_found
from pion.data.overlap.index import Index
from pion.data.overlap.search import search
from pion.errors import BadInput
from pion.files import unwritable, write_atomically
from pion.untrusted import LARGEST_LISTING, parse_object, read_file
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.encode_piece import batches
from pipeline.data.sources import Input, documents, is_held_out
from pipeline.job import Job
from pipeline.machine.kill_points import mark
from pipeline.machine.time_limit import attended_items

PROGRESS = "progress.json"
# Documents are judged in batches of about so many characters, and the file is complete after
# about so many bytes of text.
BATCH_CHARS = 1 << 20
SAVED_BYTES = 64 << 20
# What is known of a document: the hash and the signature of `MeasuredText`, its `Verdict`, and the
# first item of an evaluation set that it holds; -1: none.
ENTRY = np.dtype(
    [
        ("hash", np.uint64),
        ("signature", np.uint16, HASHES),
        ("item", np.int32),
        ("verdict", np.uint8),
    ],
    align=True,
)


@dataclass
class Judged:
    """Which documents are judged, before they are compared.

    Attributes:
        counts: how many documents of each source.
        sizes: how many bytes of text these have.
        found: what the search for the sets has found.
        file: has an ENTRY for each document.
    """

    counts: list[int]
    sizes: list[int]
    found: Found
    file: Path

    def entries(self) -> np.ndarray:
        """Return what is known of all documents, (N,) ENTRY, mapped from the file."""
        return np.memmap(self.file, ENTRY, "r", shape=(sum(self.counts),))


def judge_documents(
    job: Job, inputs: Sequence[Input], folder: Path, index: Index, say: Say
) -> Judged:
    """Judge the documents of `inputs`, and keep their numbers in a file in `folder`.

    `index` has the evaluation sets. Raises BadInput as reading the inputs does, and if the file
    can't be written.
    """
    assert job.data.clean is not None
    clean = job.data.clean
    rules = Rules(clean.min_words, clean.max_words, clean.max_repetition, tuple(clean.languages))
    folder.mkdir(parents=True, exist_ok=True)
    judged = _read_progress(folder, index, len(inputs))
    size = sum(judged.counts) * ENTRY.itemsize
    try:
        with open(judged.file, "ab") as file:
            if file.tell() < size:
                raise BadInput(
                    f"{judged.file} is shorter than {PROGRESS} says. Prepare the data again: "
                    "--redo prepare"
                )
            file.truncate(size)
            _judge(_Work(job, inputs, index, rules, say), judged, file)
    except OSError as error:
        raise unwritable(folder, error) from None
    return judged


@dataclass(frozen=True)
class _Work:
    """What is judged, and how."""

    job: Job
    inputs: Sequence[Input]
    index: Index
    rules: Rules
    say: Say


def _judge(work: _Work, judged: Judged, file: BinaryIO) -> None:
    saved = sum(judged.sizes)

    def look() -> None:
        work.say(PrepareProgress("look for copies and bad text", sum(judged.sizes) / 1e6, "MB"))

    for source, batch in attended_items(_batches(work, judged.counts), look):
        held_out, texts = zip(*batch)
        encoded = [text.encode() for text in texts]
        measured, entries = measure(texts), np.zeros(len(encoded), ENTRY)
        entries["hash"], entries["signature"] = measured.hashes, measured.signatures
        entries["verdict"] = judge_alone(work.rules, texts, measured)
        entries["item"] = -1
        _look_for_items(work.index, judged, held_out, encoded, entries)
        file.write(entries.tobytes())
        judged.counts[source] += len(encoded)
        judged.sizes[source] += sum(map(len, encoded))
        look()
        if sum(judged.sizes) - saved >= SAVED_BYTES:
            _save(judged, file)
            saved = sum(judged.sizes)
    _save(judged, file)


def _batches(work: _Work, counts: Sequence[int]) -> Iterator[tuple[int, list[tuple[bool, str]]]]:
    """Yield the source and the texts of documents that are not in the file, held out or not."""
    for source, (source_input, done) in enumerate(zip(work.inputs, list(counts))):
        left = islice(documents(work.job, source_input), done, None)
        marked = ((is_held_out(work.job, document), document.text) for document in left)
        for batch in batches(marked, BATCH_CHARS):
            yield source, batch


def _look_for_items(
    index: Index,
    judged: Judged,
    held_out: Sequence[bool],
    encoded: Sequence[bytes],
    entries: np.ndarray,
) -> None:
    """Note the first items that the kept documents to train on hold, and leave these documents out.

    Held-out documents are not searched: no model trains on them, and the control is cut from them.
    """
    if not index.sets:
        return
    # The controls are the odd groups of items.
    groups = np.array(index.firsts)

    def note(place: int, overlapping: np.ndarray) -> None:
        of_sets = overlapping[(np.searchsorted(groups, overlapping, side="right") - 1) % 2 == 0]
        if len(of_sets):
            entries[place]["item"] = of_sets.min()
            entries[place]["verdict"] = Verdict.EVALUATION

    candidates = np.flatnonzero((entries["verdict"] == Verdict.KEPT) & ~np.array(held_out))
    searched = ((place, encoded[place]) for place in candidates.tolist())
    search(index, searched, judged.found, on_overlap=note)


def _save(judged: Judged, file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    record = {"counts": judged.counts, "sizes": judged.sizes, "found": judged.found.record()}
    write_atomically(judged.file.with_name(PROGRESS), json.dumps(record).encode())
    mark("shard")


def _read_progress(folder: Path, index: Index, sources: int) -> Judged:
    """Return what an interrupted call has done. Raises BadInput for a damaged file."""
    path, file = folder / PROGRESS, folder / "documents"
    if not path.exists():
        return Judged([0] * sources, [0] * sources, nothing_found(index), file)
    record = parse_object(read_file(path, LARGEST_LISTING), str(path))
    try:
        counts, sizes = ([int(n) for n in record[key]] for key in ("counts", "sizes"))
        if len(counts) != sources or len(sizes) != sources or min(counts + sizes) < 0:
            raise ValueError(f"{len(counts)} sources")
        return Judged(counts, sizes, read_found(record["found"], index), file)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadInput(
            f"{path} is damaged ({error!r:.200}). Prepare the data again: --redo prepare"
        ) from None
