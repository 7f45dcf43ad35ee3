"""The finished numbers of a reference, as data that all runs of a store share.

They are found by what decides them: the model, the rows and the dtypes. So another β, another loss
or another rate needs no second pass. HEAD names the folder that the run uses from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pion.data.arrays import read_array
from pion.errors import BadInput
from pion.files import make_folder, sha256_file, write_atomically
from pion.train.reference import TOLERANCE, ReferenceSums
from pion.untrusted import parse_object, read_file
from pipeline.console.messages import Note, PrepareProgress
from pipeline.data.fingerprint import APART
from pipeline.state.head import REFERENCE, data_key
from pipeline.state.owner import Owner
from pipeline.state.shared.find_or_prepare import bind, find_or_prepare
from pipeline.state.shared.folder import REFERENCE_FILE, Overtaken, complete
from pipeline.state.shared.records import Writer, read_state

if TYPE_CHECKING:
    from pipeline.training.context import TrainingContext

FORMAT = 1


def key_of(weights: str, settings: Mapping[str, Any], contents: Mapping[str, list[str]]) -> str:
    """Return what names the numbers of a reference: 64 hexadecimal digits.

    `weights` is the hash of the reference's weights, `settings` are those of the model and how it
    computes, and `contents` has the fingerprints of the rows of each split. Nothing else decides
    the numbers, but for rounding. With APART, as with prepared data, no other run has the same key.
    """
    content = {"format": FORMAT, "weights": weights, "rows": contents, **settings}
    if apart := os.environ.get(APART):
        content["apart"] = apart
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Bound:
    """The numbers of a reference that a stage learns with, and the record by which each checkpoint
    names them. `dtype` and `residual` are those of the computation."""

    splits: Mapping[str, ReferenceSums]
    record: bytes
    dtype: str
    residual: str


def write_reference(
    folder: Path, key: str, splits: Mapping[str, ReferenceSums], about: Mapping[str, Any]
) -> None:
    """Write the numbers of all splits into a folder; REFERENCE_FILE, which names them, last.

    Raises BadInput if they can't be written.
    """
    make_folder(folder)
    for split, reference in splits.items():
        for name in ("sums", "starts"):
            path = folder / f"{split}.{name}.npy"
            with path.open("wb") as file:
                np.save(file, getattr(reference, name), allow_pickle=False)
    files = {path.name: sha256_file(path) for path in sorted(folder.glob("*.npy"))}
    described = {"format": FORMAT, "key": key, "files": files, **about}
    write_atomically(folder / REFERENCE_FILE, json.dumps(described, indent=1).encode())


def read_reference(folder: Path, rows: Mapping[str, int]) -> Bound:
    """Return the numbers in a folder, for so many rows of each split. Raises BadInput for files
    that can't be read, don't fit the rows, or are not those that REFERENCE_FILE names."""
    try:
        described = parse_object(read_file(folder / REFERENCE_FILE), str(folder / REFERENCE_FILE))
        splits, files = {}, described["files"]

        def read(name: str, dtype: type, length: int) -> np.ndarray:
            return read_array(folder / name, dtype, length, str(files[name]))

        for split, count in rows.items():
            starts = read(f"{split}.starts.npy", np.int64, count + 1)
            sums = read(f"{split}.sums.npy", np.float64, int(starts[-1]))
            splits[split] = ReferenceSums(sums, starts)
            splits[split].check(count, f"{folder} ({split})")
        record = {name: described[name] for name in ("format", "key", "files")}
        dtype, residual = (str(described[name]) for name in ("dtype", "residual"))
        if dtype not in TOLERANCE:
            raise ValueError(f"dtype {dtype!r:.80}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}: these numbers of a reference can't be read: {error!r}") from None
    return Bound(splits, json.dumps(record, sort_keys=True).encode(), dtype, residual)


class Sharing:
    """Shares the reference `key` in the store of the run that rank 0 owns, and binds it to the
    run."""

    def __init__(self, context: TrainingContext, key: str) -> None:
        assert context.owned is not None
        self._claim, self._run, self.key = context.owned, context.owned.state, key
        self._owner = Owner(**context.request.owner)
        self._say, self._patiently = context.report, context.patiently

    def use_what_is_there(self) -> bool:
        """Bind the reference if a run of the store has computed it. Raises StoreError."""
        bound = self._claim.head.data.get(REFERENCE, "")
        folder = self._patiently(lambda: read_state(self._run.store, self.key)[0].folder)
        if folder is None or bound == data_key(self.key, folder):
            return bound.split("/")[1:2] == [self.key]
        return self._bind(folder)

    def share(self, folder: Path, sources: tuple[str, ...], *, again: bool) -> None:
        """Share the files in `folder`, or use what another run has shared meanwhile, and bind them.

        `again`: also if the store has such files, which are no good. Raises StoreError.
        """
        while True:
            begun = self._patiently(partial(self._begin, again))
            if isinstance(begun, Writer):
                writer = begun
                try:
                    begun = self._patiently(
                        partial(complete, self._run, self.key, writer, folder, sources)
                    )
                except Overtaken as overtaken:
                    self._say(Note(f"{overtaken}; sharing it again"))
                    continue
            if self._bind(begun):
                return

    def _begin(self, again: bool) -> str | Writer:
        def waiting(other: Writer, seconds: float) -> None:
            what = f"wait for run {other.run} on {other.host}, which shares the same reference"
            self._say(PrepareProgress(what, seconds, "s", stage="prefer"))

        return find_or_prepare(
            self._run, self.key, self._claim.epoch, self._owner, waiting, again=again
        )

    def _bind(self, folder: str) -> bool:
        """Let HEAD list the folder; return whether this run may use it."""
        return bool(self._patiently(partial(bind, self._claim, REFERENCE, self.key, folder)))
