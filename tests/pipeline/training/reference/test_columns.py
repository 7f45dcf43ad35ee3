"""Columns of numbers: named by what decides them, and read as they were written or not at all."""

import json
import math
import struct

import numpy as np
import pytest

from pion.errors import BadInput
from pion.files import sha256_file
from pipeline.console.messages import Note
from pipeline.training.reference.columns import (
    _hash_of,
    columns_of,
    delete_unfinished,
    key_of,
    read_reference,
    read_unfinished,
    write_column,
    write_reference,
    write_unfinished,
)
from tests.support.reference_world import numbers_of

KEY = "ab" * 32
ABOUT = {"weights": "w", "dtype": "float32", "residual": "float32"}
SHARDS = [f"train/0/shard_{number:05}.reference.npy" for number in range(3)]


def test_what_decides_the_numbers_is_in_their_name():
    about = {**ABOUT, "model": {"n_layers": 2}, "rows": {"train": ["a"], "held_out": ["b"]}}
    others = [about | {name: "other"} for name in about]
    assert len({key_of(one) for one in [about, *others]}) == 1 + len(about)
    assert len(key_of(about)) == 64


def test_each_shard_has_a_column_with_a_line_for_each_row(world):
    columns = [(one.name, one.rows) for one in columns_of(world.streams()) if one.split == "train"]
    assert columns == list(zip(SHARDS, [4, 4, 2], strict=True))


# ---------------------------------------------------------------- unfinished columns


def write(world, rows, name=SHARDS[0]):
    with world.context() as context:
        write_unfinished(context, KEY, name, rows, flush=True)


def read(world, key=KEY):
    """Return the rows of the columns that have some, and what is said."""
    with world.context() as context:
        found = read_unfinished(context, key, columns_of(world.streams()))
    said = [message.text for message in world.said if isinstance(message, Note)]
    return {name: rows for name, rows in found.items() if rows}, said


def test_an_unfinished_column_has_the_rows_that_were_written_last_and_every_bit(world):
    sums = [[-1 / 3, -math.pi * 1e5], [-5e-324, 0.0, -2.0]]
    write(world, sums[:1])
    write(world, sums)
    write(world, [[-9.0]], "held_out/0/shard_00000.reference.npy")
    found, said = read(world)
    packed = [struct.pack(f"{len(row)}d", *row) for row in found[SHARDS[0]]]
    assert packed == [struct.pack(f"{len(row)}d", *row) for row in sums]
    assert found["held_out/0/shard_00000.reference.npy"] == [[-9.0]]
    assert not said


def test_columns_of_another_reference_are_not_read_and_are_deleted_with_it(world):
    write(world, [[-1.0]])
    assert read(world, "cd" * 32) == ({}, [])
    with world.context() as context:
        delete_unfinished(context.run)
    assert read(world) == ({}, [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes().replace(struct.pack("d", -2.0), bytes(8))),
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(path.read_bytes() + b" "),
        lambda path: path.write_bytes(b""),
        lambda path: path.rename(path.with_name("shard_00001.reference.npy")),
        lambda path: path.rename(path.parents[2] / "train-0000000000.json"),  # before columns
    ],
    ids=["flipped", "shorter", "longer", "empty", "of another shard", "of an older version"],
)
def test_what_is_damaged_does_not_count_and_one_line_says_so(world, damage):
    write(world, [[-1.0, -2.0], [-3.0]])
    (path,) = (world.folder / "runs/tiny/reference").rglob("*.npy")
    damage(path)
    found, (said,) = read(world)
    assert not found
    assert "1 of the files in" in said
    assert f"{world.folder}/runs/tiny/reference/{KEY[:32]}/ can't be used" in said
    assert said.endswith("Their rows are computed again")


@pytest.mark.parametrize("number", [-math.inf, math.inf, 0.5, math.nan])
def test_what_is_no_sum_of_log_probabilities_is_refused(world, number):
    write(world, [[-1.0], [number]])
    with pytest.raises(BadInput, match=r"number 1 is .* finite, and at most 0|without a number"):
        read(world)


def test_another_array_than_a_column_is_refused(world):
    write(world, [[-1.0]])
    (path,) = (world.folder / "runs/tiny/reference").rglob("*.npy")
    np.save(path, np.array([[-1]]))
    path.write_bytes(path.read_bytes() + _hash_of(KEY, SHARDS[0], path.read_bytes()))
    with pytest.raises(BadInput, match="has int64 of shape"):
        read(world)


# ---------------------------------------------------------------- finished columns


def finish(world, **about):
    """Write columns; return their folder, and the numbers of each split in the order of rows."""
    folder, numbers = world.folder / "finished", {}
    for split, stream in world.streams().items():
        rows = numbers[split] = [
            [-1.0 - 10 * n - k for k in range(len(row))] for n, row in enumerate(numbers_of(stream))
        ]
        done = 0
        for column in columns_of({split: stream}):
            write_column(folder / column.name, rows[done : done + column.rows])
            done += column.rows
    write_reference(folder, KEY, ABOUT | about)
    return folder, numbers


def test_each_row_has_its_numbers(world):
    folder, numbers = finish(world)
    reference = read_reference(folder, world.streams())
    assert {split: numbers_of(one) for split, one in reference.streams.items()} == numbers
    assert (reference.weights, reference.dtype, reference.residual) == tuple(ABOUT.values())
    assert list(json.loads(reference.record)) == ["files", "format", "key"]


def test_numbers_of_a_version_without_columns_are_read(world):
    """A stage in the middle of its steps continues with these numbers."""
    folder, numbers = finish(world)
    files = {}
    for split, rows in numbers.items():
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        for name, array in (("sums", np.concatenate(rows)), ("starts", starts)):
            np.save(folder / f"{split}.{name}.npy", array)
            files[f"{split}.{name}.npy"] = sha256_file(folder / f"{split}.{name}.npy")
    described = {"format": 1, "key": KEY, "files": files}
    (folder / "reference.json").write_text(json.dumps(described | ABOUT))
    reference = read_reference(folder, world.streams())
    assert {split: numbers_of(one) for split, one in reference.streams.items()} == numbers
    assert reference.record == json.dumps(described, sort_keys=True).encode()
    np.save(folder / "train.sums.npy", -np.load(folder / "train.sums.npy"))
    with pytest.raises(BadInput, match=r"train\.sums\.npy: has been altered"):
        read_reference(folder, world.streams())


def other_column(rows):
    def change(folder):
        write_column(folder / SHARDS[1], rows)
        write_reference(folder, KEY, ABOUT)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / SHARDS[1]).write_bytes(b""), "altered"),
        (lambda folder: (folder / SHARDS[1]).unlink(), "can't read this array"),
        (lambda folder: (folder / "reference.json").write_text("[]"), "should be a JSON object"),
        (lambda folder: (folder / "reference.json").write_text("{}"), "'files'"),
        (lambda folder: (folder / "reference.json").unlink(), "can't be read"),
        (lambda folder: write_reference(folder, KEY, {}), "'weights'"),
        (lambda folder: write_reference(folder, KEY, ABOUT | {"dtype": "int8"}), "dtype 'int8'"),
        (other_column([[-1.0]] * 3), "not 4 × any numbers"),
        (other_column([[-1.0]] * 3 + [[]]), "without a number"),
        (other_column([[-1.0]] * 3 + [[1.0]]), "number 3 is 1.0"),
    ],
)
def test_what_does_not_fit_its_list_or_its_rows_is_refused(world, change, expected):
    folder, _ = finish(world)
    change(folder)
    with pytest.raises(BadInput, match=expected):
        read_reference(folder, world.streams())
