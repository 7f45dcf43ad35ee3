import hashlib
import os

import numpy as np
import pytest

from pion.data.arrays import check_ids, open_npy, open_shard, read_array
from pion.errors import BadInput


def saved(path, array):
    np.save(path, array, allow_pickle=True)
    return path


def bin_file(path, ids, **header):
    fields = {"magic": 20240520, "version": 1, "tokens": len(ids)} | header
    numbers = np.zeros(256, dtype="<i4")
    numbers[:3] = list(fields.values())
    path.write_bytes(numbers.tobytes() + np.array(ids, dtype="<u2").tobytes())
    return path


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64", "uint32", ">i4"])
def test_an_npy_shard_of_any_integer_type_is_mapped_as_it_is(tmp_path, dtype):
    ids = np.arange(12, dtype=dtype).reshape(3, 4)
    rows = open_npy(saved(tmp_path / "a.npy", ids), seq_len=4)
    assert isinstance(rows, np.memmap)
    assert rows.tolist() == ids.tolist()


def test_rows_a_multiple_of_seq_len_long_are_split_and_nothing_is_lost(tmp_path):
    rows = open_npy(saved(tmp_path / "a.npy", np.arange(12).reshape(2, 6)), seq_len=3)
    assert rows.tolist() == np.arange(12).reshape(4, 3).tolist()


def test_a_shard_without_rows_is_empty(tmp_path):
    assert open_npy(saved(tmp_path / "a.npy", np.zeros((0, 4), np.int32)), 4).shape == (0, 4)


@pytest.mark.parametrize("row_length", [3, 5, 6, 0])
def test_rows_of_another_length_are_refused_with_both_lengths(tmp_path, row_length):
    path = saved(tmp_path / "a.npy", np.zeros((2, row_length), np.int32))
    with pytest.raises(BadInput, match=rf"a\.npy: rows of {row_length} ids.*seq_len 4"):
        open_npy(path, seq_len=4)


def test_a_truncated_npy_is_refused_with_expected_and_actual_bytes(tmp_path):
    path = saved(tmp_path / "a.npy", np.zeros((10, 4), np.int32))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BadInput, match=r"a\.npy: truncated.* 288 bytes, the file has 281"):
        open_npy(path, 4)


def test_a_missing_shard_is_named(tmp_path):
    for name in ("nowhere.npy", "nowhere.bin"):
        with pytest.raises(BadInput, match=name):
            open_shard(tmp_path / name, 4)


def test_a_bin_shard_is_cut_into_rows_and_its_tail_left_out(tmp_path):
    rows = open_shard(bin_file(tmp_path / "a.bin", list(range(11))), seq_len=4)
    assert rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rows.dtype == np.uint16


@pytest.mark.parametrize("bad", [100, 2**31 - 1, -1])
def test_an_id_beyond_the_vocabulary_is_found_with_shard_row_and_id(bad):
    rows = np.zeros((2**12, 2**11), np.int32)  # more than one chunk
    check_ids(rows, 100, "a.npy")
    rows[4000, 7] = bad
    with pytest.raises(BadInput, match=rf"a\.npy: row 4,000 has id {bad:,} at position 7.*100"):
        check_ids(rows, 100, "a.npy")


# ---------------------------------------------------------------- arrays of known shape


def test_an_array_of_the_dtype_length_and_hash_that_are_asked_for_is_read(tmp_path):
    array = np.arange(5, dtype=np.float64)
    path = saved(tmp_path / "a.npy", array)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_array(path, np.float64, (5,), sha256).tolist() == array.tolist()
    saved(path, -array)
    assert read_array(path, np.float64, (5,)).tolist() == (-array).tolist()
    with pytest.raises(BadInput, match=r"a\.npy: has been altered"):
        read_array(path, np.float64, (5,), sha256)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5, np.float32),
        np.zeros(5, ">f8"),
        np.zeros(5, np.complex128),
        np.array([None] * 5),
        np.zeros((5, 1)),
        np.zeros(()),
        np.zeros(4),
        np.zeros(6),
        np.zeros(1 << 16),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_another_array_is_refused_with_the_file(tmp_path, array):
    with pytest.raises(BadInput, match=r"a\.npy"):
        read_array(saved(tmp_path / "a.npy", array), np.float64, (5,))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, path.stat().st_size - 8),
        lambda path: path.write_bytes(path.read_bytes() + bytes(8)),
        lambda path: path.write_bytes(b""),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: path.unlink(),
    ],
    ids=["shorter", "longer", "empty", "pipe", "endless", "missing"],
)
def test_what_is_no_whole_file_is_refused_at_once(tmp_path, change):
    path = saved(tmp_path / "a.npy", np.zeros(5))
    change(path)
    with pytest.raises(BadInput, match=r"a\.npy"):
        read_array(path, np.float64, (5,))
