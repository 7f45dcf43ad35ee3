"""Decide which documents of the text sources are left out: those that break a rule, and copies.

Of documents that are equal or similar, the first is kept, in the order of the sources and of the
documents in them. So the decision does not depend on how the work is divided or interrupted.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pion.clean.copies import NONE, exact_copies, near_copies
from pion.clean.rules import Verdict
from pion.data.arrays import read_array
from pion.data.documents.file_to_documents import Document
from pion.data.overlap.index import Index, build_index
from pion.errors import BadInput
from pion.files import write_atomically
from pion.untrusted import LARGEST_LISTING, parse_object, read_file
from pipeline.console.messages import Note, PrepareProgress, Say
from pipeline.data.cleaning.judged import Judged, judge_documents
from pipeline.data.cleaning.receipt import (
    chosen_examples,
    cut_short,
    judge,
    left_out_in_words,
    place_of,
)
from pipeline.data.cleaning.sets import read_sets, with_control
from pipeline.data.sources import Input
from pipeline.job import Job
from pipeline.machine.kill_points import mark
from pipeline.machine.time_limit import attended

VERDICTS, DECIDED = "verdicts.npy", "decided.json"


@dataclass
class Cleaned:
    """Which documents are kept, and the receipt, as far as it is known.

    Attributes:
        inputs: the sources.
        verdicts: (N,) uint8: see `Verdict`; the documents of all sources in order.
        record: what `decided.json` has: `documents` and `bytes` of each source, the `examples` of
            each verdict, the evaluation `sets`, and the `seconds` that it took.
        shown: the source, the place and the beginning of the examples that were read so far, by
            document.
    """

    inputs: Sequence[Input]
    verdicts: np.ndarray
    record: dict[str, Any]
    shown: dict[int, dict[str, Any]] = field(default_factory=dict)

    def keep(self, source: int) -> Callable[[Document], bool]:
        """Return a function that says of each document of a source, in order, whether to keep it.

        The function raises BadInput for more documents than were judged.
        """
        first = self._firsts[source]
        # As bytes, which Python reads faster than numpy's numbers.
        verdicts = self.verdicts[first : self._firsts[source + 1]].tobytes()
        source_input, number = self.inputs[source], -1
        examples = [example for _, some in self.record["examples"] for example in some]
        wanted = {position for example in examples for position in example[:2] if position != NONE}

        def kept(document: Document) -> bool:
            nonlocal number
            number += 1
            if number >= len(verdicts):
                raise BadInput(
                    f"{source_input.key}: the files have changed while they were prepared. Nothing "
                    "was trained. Wait until they are complete, then run the same command again."
                )
            if first + number in wanted:
                self.shown[first + number] = {
                    "source": source,
                    "document": place_of(source_input, document.origin),
                    "text": cut_short(document.text),
                }
            return verdicts[number] == Verdict.KEPT

        return kept

    def receipt(self) -> dict[str, Any]:
        """Return what was kept and left out, once all documents were read again."""
        return {
            "documents": len(self.verdicts),
            "kept": int(np.count_nonzero(self.verdicts == Verdict.KEPT)),
            "bytes": sum(self.record["bytes"]),
            "sources": [self._of_source(number) for number in range(len(self.inputs))],
            "dropped": [
                {
                    "rule": Verdict(verdict).words,
                    "documents": int(np.count_nonzero(self.verdicts == verdict)),
                    "examples": [self._example(*example) for example in examples],
                }
                for verdict, examples in self.record["examples"]
            ],
            "sets": self.record["sets"],
            "seconds": self.record["seconds"],
        }

    def require_text(self) -> None:
        """Raise BadInput for a source of which nothing is left."""
        for number, source_input in enumerate(self.inputs):
            counts = self._of_source(number)
            if not counts["kept"]:
                raise BadInput(
                    f"{source_input.key}: data.clean leaves out all of its {counts['documents']:,} "
                    f"documents ({left_out_in_words(counts['dropped'])}). Nothing was trained. "
                    "Change a bound of data.clean, or remove this source"
                )

    def _of_source(self, number: int) -> dict[str, Any]:
        verdicts = self.verdicts[self._firsts[number] : self._firsts[number + 1]]
        counts = np.bincount(verdicts, minlength=len(Verdict)).tolist()
        dropped = {v.words: counts[v] for v in Verdict if v != Verdict.KEPT and counts[v]}
        return {"documents": len(verdicts), "kept": counts[Verdict.KEPT], "dropped": dropped}

    def _example(self, document: int, original: int, item: str) -> dict[str, Any]:
        example = dict(self.shown[document])
        if original != NONE:
            example["like"] = self.shown[original]
        if item:
            example["item"] = item
        return example

    @property
    def _firsts(self) -> list[int]:
        return list(accumulate(self.record["documents"], initial=0))


def clean(job: Job, inputs: Sequence[Input], folder: Path, say: Say) -> Cleaned:
    """Return which documents of the job's text to keep. `folder` is for files until then.

    An interrupted call continues where it was. Raises BadInput for a document or an evaluation set
    that can't be read, and if nothing is left of a source.
    """
    cleaned = _decided(inputs, folder)
    if cleaned is None:
        started = time.monotonic()
        index = _index(job, inputs, say)
        judged = judge_documents(job, inputs, folder, index, say)
        cleaned = _decide(job, inputs, judged, index, say)
        cleaned.record["seconds"] = round(time.monotonic() - started, 1)
        _keep(cleaned, folder)
        judged.file.unlink(missing_ok=True)
    cleaned.require_text()
    count = np.count_nonzero(cleaned.verdicts == Verdict.KEPT)
    say(Note(f"data.clean keeps {count:,} of {len(cleaned.verdicts):,} documents"))
    return cleaned


def _index(job: Job, inputs: Sequence[Input], say: Say) -> Index:
    """Return what is looked for: the evaluation sets with their controls. A stop is heard."""
    started = time.monotonic()

    def look() -> None:
        say(PrepareProgress("read the evaluation sets", time.monotonic() - started, "s"))

    sets = attended(lambda: with_control(job, read_sets(job), inputs), look)
    return attended(lambda: build_index(sets), look)


def _decide(job: Job, inputs: Sequence[Input], judged: Judged, index: Index, say: Say) -> Cleaned:
    """Find the copies among the documents that break no rule, and choose the examples."""
    assert job.data.clean is not None
    entries = judged.entries()
    verdicts = np.array(entries["verdict"])
    originals = np.full(len(verdicts), NONE, dtype=np.int64)

    def leave_out(found: np.ndarray, verdict: Verdict) -> None:
        verdicts[found != NONE] = verdict
        originals[found != NONE] = found[found != NONE]

    def compared(done: int, total: int) -> None:
        say(PrepareProgress("compare documents", done, "bands", total))

    if job.data.clean.exact:
        leave_out(exact_copies(entries["hash"], verdicts == Verdict.KEPT), Verdict.EXACT_COPY)
    if job.data.clean.near is not None:
        is_kept = verdicts == Verdict.KEPT
        near = near_copies(entries["signature"], is_kept, job.data.clean.near, compared)
        leave_out(near, Verdict.NEAR_COPY)
    record = {
        "documents": judged.counts,
        "bytes": judged.sizes,
        "examples": chosen_examples(verdicts, originals, entries["item"], index),
        "sets": judge(index, judged.found),
    }
    return Cleaned(inputs, verdicts, record)


def _keep(cleaned: Cleaned, folder: Path) -> None:
    """Write the decision, so that an interrupted call need not decide again."""
    array = io.BytesIO()
    np.save(array, cleaned.verdicts, allow_pickle=False)
    write_atomically(folder / VERDICTS, array.getbuffer())
    mark("shard")
    write_atomically(folder / DECIDED, json.dumps(cleaned.record).encode())
    mark("shard")


def _decided(inputs: Sequence[Input], folder: Path) -> Cleaned | None:
    """Return the decision in the folder, if there is one."""
    path = folder / DECIDED
    if not path.exists():
        return None
    record = parse_object(read_file(path, LARGEST_LISTING), str(path))
    try:
        verdicts = read_array(folder / VERDICTS, np.uint8, (sum(record["documents"]),))
    except (BadInput, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder / VERDICTS} is damaged ({error!r:.200}). Prepare the data again: "
            "--redo prepare"
        ) from None
    return Cleaned(inputs, verdicts, record)
