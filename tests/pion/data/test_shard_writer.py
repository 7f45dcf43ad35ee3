import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.arrays import check_ids, open_npy
from pion.data.shard_writer import ShardWriter
from pion.data.shards import flags_path, sha256_file
from pion.errors import BadInput
from tests.support.corpora import files_of

END = 0


def writer(folder, **changes):
    return ShardWriter(folder, **{"seq_len": 4, "vocab_size": 1000, "rows_per_shard": 3, **changes})


def ids_in(folder, shards):
    return [i for s in shards for i in open_npy(folder / s.name, 4).ravel().tolist()]


def append(out, *documents):
    """Append documents, each with an end-of-text unless it is empty."""
    ended = [[*document, END] if document else [] for document in documents]
    ids = np.array([i for document in ended for i in document], np.int64)
    out.append_documents(ids, np.array([len(document) for document in ended]))


DOCUMENTS = st.lists(st.lists(st.integers(1, 999), max_size=40), max_size=20)


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS, st.integers(1, 9), st.lists(st.integers(0, 19), max_size=3))
def test_killed_anywhere_it_joins_the_documents_and_drops_only_an_incomplete_row(
    tmp_path_factory, documents, together, kills
):
    unbroken, broken = tmp_path_factory.mktemp("unbroken"), tmp_path_factory.mktemp("broken")
    out = writer(unbroken)
    append(out, *documents)
    shards = out.finish()
    stream = [i for document in documents if document for i in [*document, END]]
    assert ids_in(unbroken, shards) == stream[: len(stream) // 4 * 4]
    assert all(s.rows == 3 for s in shards[:-1])
    for stop in [*kills, None, None]:  # at last, all is done, and nothing changes
        out = writer(broken)
        left = documents[out.appended : stop]
        while left:
            append(out, *left[:together])
            left = left[together:]
        if stop is None:
            assert out.finish() == shards
    assert files_of(broken) == files_of(unbroken)


def test_a_resumed_writer_does_not_touch_finished_shards(tmp_path):
    first = writer(tmp_path)
    append(first, list(range(1, 30)))
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    resumed = writer(tmp_path)
    assert resumed.shards == first.shards
    append(resumed, list(range(1, 30)))
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 999}, {"rows_per_shard": 2}, {"seq_len": 2}, {"key": "another corpus"}],
)
def test_shards_of_other_settings_are_not_taken_over(tmp_path, change):
    append(writer(tmp_path), list(range(1, 30)))
    assert writer(tmp_path).shards
    assert not writer(tmp_path, **change).shards


def test_a_shard_damaged_since_is_written_again(tmp_path):
    append(writer(tmp_path), list(range(1, 60)))
    second = tmp_path / "shard_00001.npy"
    second.write_bytes(second.read_bytes()[:-1])
    assert len(writer(tmp_path).shards) == 1
    second.unlink()
    assert len(writer(tmp_path).shards) == 1


def test_rows_of_conversations_are_written_with_their_flags_and_resume(tmp_path):
    rows = np.arange(28).reshape(7, 4)
    flags = (rows % 3).astype(np.uint8)

    def conversations():
        return ShardWriter(
            tmp_path, seq_len=4, vocab_size=100, rows_per_shard=3, conversations=True
        )

    conversations().append_rows(rows[:5], flags[:5])  # killed after the first shard
    out = conversations()
    assert out.appended == 3
    out.append_rows(rows[3:], flags[3:])
    shards = out.finish()
    assert [s.rows for s in shards] == [3, 3, 1]
    paths = [tmp_path / s.name for s in shards]
    assert np.concatenate([open_npy(p, 4) for p in paths]).tolist() == rows.tolist()
    stored_flags = np.concatenate([open_npy(flags_path(p), 4) for p in paths])
    assert stored_flags.tolist() == flags.tolist()
    for shard, path in zip(shards, paths):
        assert shard.sha256 == sha256_file(path)
        assert shard.bytes == path.stat().st_size
        assert shard.flags_sha256 == sha256_file(flags_path(path))
        assert shard.flags_bytes == flags_path(path).stat().st_size


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_take_two_bytes_where_the_vocabulary_allows(tmp_path, vocab_size, dtype):
    out = writer(tmp_path, vocab_size=vocab_size)
    append(out, [vocab_size - 1] * 11)
    (shard,) = out.finish()
    assert shard.dtype == dtype
    check_ids(open_npy(tmp_path / shard.name, 4), vocab_size, shard.name)
    assert open_npy(tmp_path / shard.name, 4)[0, 0] == vocab_size - 1


@pytest.mark.parametrize("bad", [1000, -1])
def test_an_id_beyond_the_vocabulary_is_refused_before_it_wraps_around(tmp_path, bad):
    with pytest.raises(BadInput, match=f"id {bad:,} is beyond the vocabulary of 1,000"):
        append(writer(tmp_path), [1, bad])


def test_a_full_disk_ends_in_one_message_with_the_finished_shards_safe(tmp_path):
    out = writer(tmp_path)
    (tmp_path / "shard_00001.npy.tmp").symlink_to("/dev/full")
    with pytest.raises(BadInput, match=r"00001\.npy: the disk is full\. .* before it is safe"):
        append(out, list(range(1, 60)))
    resumed = writer(tmp_path)
    assert len(resumed.shards) == 1
    append(resumed, list(range(1, 60)))
    assert ids_in(tmp_path, resumed.finish()) == [*range(1, 60), END]


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"file/shards: can't be written \(Not a directory\)"):
        writer(tmp_path / "file" / "shards")
