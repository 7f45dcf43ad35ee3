"""The numbers of a reference, as a column of each shard of rows: a line for each row.

While the columns are computed, they are files in the run's folder of the store. The file of the
column at work is written again as the column grows, so a process that dies loses little. A column
is finished when it has a line for each row. The finished columns are data that all runs of a store
share. Their name says what decides them: the model, the rows and the dtypes. So another β, another
loss or another rate needs no second pass.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pion.data.arrays import LARGEST_ARRAY, parse_array, read_array
from pion.errors import BadInput
from pion.files import make_folder, sha256_file, write_atomically
from pion.train.reference import TOLERANCE, check_column, column_of, numbers_in
from pion.untrusted import parse_object, read_file
from pipeline.console.messages import Note
from pipeline.data.fingerprint import APART
from pipeline.machine.kill_points import mark
from pipeline.state.run_state import RunState
from pipeline.state.shared.folder import REFERENCE_FILE

if TYPE_CHECKING:
    from pion.data.stream import References, RowStream
    from pipeline.training.context import TrainingContext

FORMAT = 1
# Of the hash that ends the file of an unfinished column.
HASH_BYTES = 32


class Column(NamedTuple):
    """The column of a shard of so many `rows`. `name` is that of its file below a folder. The
    numbers of the source and of the shard in it say where the rows are in the stream of `split`."""

    name: str
    split: str
    source: int
    shard: int
    rows: int


def columns_of(streams: Mapping[str, RowStream]) -> list[Column]:
    """Return the columns for the rows of all splits."""
    return [
        Column(
            f"{split}/{source}/{Path(shard.name).stem}.reference.npy",
            split,
            source,
            number,
            shard.rows,
        )
        for split, stream in streams.items()
        for source, number, shard in stream.shards()
    ]


def key_of(about: Mapping[str, Any]) -> str:
    """Return what names the numbers of a reference: 64 hexadecimal digits.

    `about` has the hash of the reference's weights, the settings of the model and how it computes,
    and the fingerprints of the rows of each split. Nothing else decides the numbers, but for
    rounding. With APART, as with prepared data, no other run has the same key.
    """
    content = {"format": 1, **about}
    if apart := os.environ.get(APART):
        content["apart"] = apart
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- in the run's folder


def read_unfinished(
    context: TrainingContext, key: str, columns: Iterable[Column]
) -> dict[str, list[list[float]]]:
    """Return the numbers of the first rows of each column, by its name, as the store has them.

    Files of the reference `key` that are damaged, or that another version wrote, are left out.
    Raises StoreError, and BadInput for numbers that are no sums of log-probabilities.
    """
    run, folder = context.run, _folder_of(context, key)
    rows: dict[str, list[list[float]]] = {column.name: [] for column in columns}
    useless = 0
    for entry in run.store.list(folder):
        data, name = run.store.read(entry.key, LARGEST_ARRAY), entry.key.removeprefix(folder)
        npy = data[:-HASH_BYTES]
        if name in rows and data == npy + _hash_of(key, name, npy):
            column = parse_array(npy, np.float64, (None, None), entry.key)
            check_column(column, entry.key)
            rows[name] = [*map(numbers_in, column)]
        else:
            useless += 1
    if useless:
        context.report(
            Note(
                f"prefer: {useless:,} of the files in {run.store.url}/{folder} can't be used: "
                "they are damaged, or of another version of pion. Their rows are computed again"
            )
        )
    return rows


def write_unfinished(
    context: TrainingContext,
    key: str,
    name: str,
    rows: Sequence[Sequence[float]],
    *,
    flush: bool,
) -> None:
    """Write the first rows of a column into the store, if this is rank 0.

    On a store that collects writes into commits, they are durable with the next `flush`.
    """
    owned, store = context.owned, context.run.store
    if owned is None:
        return
    owned.check()
    npy, file = _npy(column_of(rows)), _folder_of(context, key) + name
    mark("reference")
    context.patiently(partial(store.write, file, npy + _hash_of(key, name, npy)))
    if flush:
        context.patiently(store.flush)
    mark("reference")
    if owned.head.failed_attempts:
        context.patiently(owned.forget_attempts)  # this one has made progress


def delete_unfinished(run: RunState) -> None:
    """Delete the run's columns of every reference: HEAD names finished ones. Raises StoreError."""
    for entry in run.store.list(run.key("reference/")):
        run.store.delete(entry.key)


def _folder_of(context: TrainingContext, key: str) -> str:
    return context.run.key(f"reference/{key[:32]}/")


def _hash_of(key: str, name: str, npy: bytes) -> bytes:
    """Return the hash of a column and of where it belongs."""
    return hashlib.sha256(f"{key}/{name}/".encode() + npy).digest()


# ---------------------------------------------------------------- finished


@dataclass(frozen=True)
class Reference:
    """The finished numbers of a reference.

    Attributes:
        streams: the rows of each split, with these numbers.
        record: names the numbers in each checkpoint that was trained with them.
        weights: the hash of the weights of the reference.
        dtype, residual: those of the computation.
    """

    streams: Mapping[str, RowStream]
    record: bytes
    weights: str
    dtype: str
    residual: str


def write_column(path: Path, rows: Sequence[Sequence[float]]) -> None:
    """Write a finished column. Raises BadInput if it can't be written."""
    make_folder(path.parent)
    write_atomically(path, _npy(column_of(rows)))


def write_reference(folder: Path, key: str, about: Mapping[str, Any]) -> None:
    """Write REFERENCE_FILE, which names the columns in a folder by their hashes. Raises BadInput if
    it can't be written."""
    paths = sorted(folder.rglob("*.npy"))
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
    described = {"format": FORMAT, "key": key, "files": files, **about}
    write_atomically(folder / REFERENCE_FILE, json.dumps(described, indent=1).encode())


def read_reference(folder: Path, streams: Mapping[str, RowStream]) -> Reference:
    """Return the numbers in a folder, for these rows. Raises BadInput for files that can't be read,
    don't fit the rows, or are not those that REFERENCE_FILE names."""
    try:
        about = parse_object(read_file(folder / REFERENCE_FILE), str(folder / REFERENCE_FILE))
        with_numbers = {
            split: stream.with_references(_numbers(folder, about["files"], split, stream))
            for split, stream in streams.items()
        }
        record = {name: about[name] for name in ("format", "key", "files")}
        weights, dtype, residual = (str(about[name]) for name in ("weights", "dtype", "residual"))
        if dtype not in TOLERANCE:
            raise ValueError(f"dtype {dtype!r:.80}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}: these numbers of a reference can't be read: {error!r}") from None
    encoded = json.dumps(record, sort_keys=True).encode()
    return Reference(with_numbers, encoded, weights, dtype, residual)


def _numbers(folder: Path, hashes: Mapping[str, Any], split: str, stream: RowStream) -> References:
    if f"{split}.sums.npy" in hashes:
        return _numbers_of_split(folder, hashes, split, stream)
    columns = {}
    for column in columns_of({split: stream}):
        path, shape = folder / column.name, (column.rows, None)
        numbers = read_array(path, np.float64, shape, str(hashes[column.name]))
        check_column(numbers, str(path))
        columns[column.source, column.shard] = numbers
    return lambda place: numbers_in(columns[place[:2]][place[2]])


def _numbers_of_split(
    folder: Path, hashes: Mapping[str, Any], split: str, stream: RowStream
) -> References:
    """Return the numbers of a split as a version without columns wrote them: in one array, and in
    another one where those of each row begin."""
    starts, sums = f"{split}.starts.npy", f"{split}.sums.npy"
    begins = read_array(folder / starts, np.int64, (stream.total_rows + 1,), str(hashes[starts]))
    numbers = read_array(folder / sums, np.float64, (int(begins[-1]),), str(hashes[sums]))
    column = column_of([row.tolist() for row in np.split(numbers, begins[1:-1])])
    check_column(column, f"{folder} ({split})")
    return lambda place: numbers_in(column[stream.number_of(place)])


def _npy(column: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, column, allow_pickle=False)
    return file.getvalue()
