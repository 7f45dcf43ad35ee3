"""Chunks of a reference: read whole or refused, whatever happened to them in the store."""

import hashlib
import math
import struct

import pytest

from pion.errors import BadInput
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.training.reference.chunks import Chunks, Rows, batches

KEY = "ab" * 32


def chunks(folder, key=KEY):
    return Chunks(RunState(FileStore(folder), "tiny"), key)


def rows(first, *numbers):
    return Rows(first, list(numbers))


def file_of(folder):
    (path,) = (folder / "tiny/reference").rglob("*.json")
    return path


def test_chunks_are_read_in_the_order_of_their_rows(tmp_path):
    store = chunks(tmp_path)
    store.write("train", rows(2, [-3.0, -4.0], [-5.5]))
    store.write("train", rows(0, [-1.0], [-2.0]))
    store.write("held_out", rows(0, [-9.0]))
    found = store.read("train")
    assert (found.stop, found.numbers) == (4, [[-1.0], [-2.0], [-3.0, -4.0], [-5.5]])
    assert found.whole().of(2) == [-3.0, -4.0]


def test_what_follows_a_gap_is_computed_again(tmp_path):
    store = chunks(tmp_path)
    store.write("train", rows(0, [-1.0]))
    store.write("train", rows(2, [-3.0]))
    assert store.read("train").stop == 1


def test_chunks_of_another_owner_that_overlap_count_once(tmp_path):
    store = chunks(tmp_path)
    store.write("train", rows(0, [-1.0], [-2.0]))
    store.write("train", rows(1, [-2.0], [-3.0]))
    store.write("train", rows(2, [-3.0]))
    assert store.read("train").numbers == [[-1.0], [-2.0], [-3.0]]


def test_numbers_keep_every_bit(tmp_path):
    sums = [-1 / 3, -math.pi * 1e5, -5e-324, 0.0]
    chunks(tmp_path).write("train", rows(0, sums))
    (found,) = chunks(tmp_path).read("train").numbers
    assert struct.pack("4d", *found) == struct.pack("4d", *sums)


def test_chunks_of_other_weights_are_not_found(tmp_path):
    chunks(tmp_path).write("train", rows(0, [-1.0]))
    assert chunks(tmp_path, "cd" * 32).read("train").stop == 0
    chunks(tmp_path).delete_all()
    assert not list((tmp_path / "tiny").rglob("*.json"))


def flipped(data):
    return data.replace(b"-2.0", b"-2.1")


def signed(payload):
    return hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (flipped, "its sha256 is"),
        (lambda data: data[:-8], "not valid JSON"),
        (lambda data: data + b" ", "its sha256 is"),
        (lambda data: b"", "Expecting value"),
        (lambda data: b"\n[1]", "should be a JSON object"),
        (lambda data: signed(b"{}"), "'format'"),
        (lambda data: data.replace(KEY.encode(), b"c" * 64), "its key is"),
        (lambda data: data.replace(b'"train"', b'"other"'), "its split is"),
        (lambda data: signed(data[65:].replace(b"[-3.0]", b"-3.0")), "not iterable"),
        (lambda data: signed(data[65:].replace(b"-3.0", b'"a"')), "could not convert"),
        (lambda data: signed(data[65:].replace(b'"first": 0', b'"first": []')), "int()"),
    ],
)
def test_a_damaged_chunk_is_refused_with_what_to_do(tmp_path, damage, expected):
    chunks(tmp_path).write("train", rows(0, [-1.0, -2.0], [-3.0]))
    path = file_of(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match="Delete this file, and run the same command again") as found:
        chunks(tmp_path).read("train")
    assert expected in str(found.value)
    assert path.name in str(found.value)


@pytest.mark.parametrize("number", [math.nan, -math.inf, math.inf, 0.5])
def test_what_is_no_sum_of_log_probabilities_is_refused(tmp_path, number):
    chunks(tmp_path).write("train", rows(0, [-1.0, number]))
    with pytest.raises(BadInput, match=r"number 1 is .* finite, and at most 0|not valid JSON"):
        chunks(tmp_path).read("train")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_rows_of_a_batch_do_not_depend_on_the_number_of_ranks(ranks):
    rounds = list(batches(4, 17, 3, ranks))
    assert all(len(parts) == ranks for parts in rounds)
    every = [part for parts in rounds for part in parts if part]
    assert every == [range(4, 7), range(7, 10), range(10, 13), range(13, 16), range(16, 17)]
