import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.row_flags import LEARNED, PADDING, PREFERRED, STARTS
from pion.data.shards import Manifest, Rows, Shard, describe, flags_path, sha256_file, split_tail
from pion.errors import BadInput


def shard(rows, name="a.npy", start=0):
    return Shard(name, rows, "0" * 64, 100, "uint16", start=start)


def on_disk(folder, ids, flags=None, kind="tokens", **changes):
    """Return the rows of one shard with ``ids``."""
    path = folder / "shard_00000.npy"
    np.save(path, ids)
    if flags is not None:
        np.save(flags_path(path), flags)
    manifest = Manifest(kind, ids.shape[1], 1000, (describe(path, ids.shape[1]),))
    return Rows(replace(manifest, **changes), lambda s: folder / s.name)


def test_a_manifest_comes_back_from_disk_with_its_fingerprint(tmp_path):
    remote = {"repo": "user/data", "revision": "abc", "path": "x/a.npy"}
    manifest = Manifest(
        "tokens",
        8,
        100,
        (shard(3), replace(shard(4, "b.npy"), remote=remote)),
        pad=1,
        info={"x": 1},
    )
    manifest.write(tmp_path / "manifest.json")
    back = Manifest.read(tmp_path / "manifest.json")
    assert back == manifest
    assert back.fingerprint == manifest.fingerprint
    assert (back.rows, back.shard_rows) == (7, [3, 4])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "conversations"},
        {"seq_len": 9},
        {"vocab_size": 101},
        {"pad": 1},
        {"shards": (shard(4),)},
        {"shards": (shard(3, "b.npy"),)},
        {"shards": (shard(3, start=1),)},
        {"shards": (replace(shard(3), sha256="1" * 64),)},
        {"shards": (replace(shard(3), flags_sha256="1" * 64),)},
        {"shards": (shard(3), shard(3, "b.npy"))},
    ],
)
def test_whatever_changes_a_row_changes_the_fingerprint(change):
    manifest = Manifest("tokens", 8, 100, (shard(3),))
    assert replace(manifest, **change).fingerprint != manifest.fingerprint


def test_where_the_data_is_and_notes_about_it_do_not_change_the_fingerprint():
    here = Manifest("tokens", 8, 100, (shard(3),))
    remote = {"repo": "x", "revision": "main", "path": "a.npy"}
    there = Manifest("tokens", 8, 100, (replace(shard(3), remote=remote),), info={"a": 1})
    assert here.fingerprint == there.fingerprint


def test_the_fingerprint_stays_the_same_for_ever():
    pinned = "332143d8abd7b9604381eb6300b0ef1dd682b16673b83dd93056dfb8af69588e"
    assert Manifest("tokens", 8, 100, (shard(3),), pad=1).fingerprint == pinned


def test_a_manifest_edited_by_hand_is_refused(tmp_path):
    path = tmp_path / "manifest.json"
    Manifest("tokens", 8, 100, (shard(3),)).write(path)
    document = json.loads(path.read_text())
    document["shards"][0]["rows"] = 2
    path.write_text(json.dumps(document))
    with pytest.raises(BadInput, match=r"manifest\.json: changed since it was written"):
        Manifest.read(path)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1), st.sampled_from([0.01, 0.3, 0.9]))
def test_the_held_out_tail_and_the_rest_are_every_row_once(sizes, fraction):
    shards = [shard(rows, f"{i}.npy", start=2) for i, rows in enumerate(sizes)]
    total = sum(sizes)
    if total < 2:
        return
    train, held_out = split_tail(shards, fraction)

    def rows_of(parts):
        return [(s.name, s.start + i) for s in parts for i in range(s.rows)]

    assert rows_of(train) + rows_of(held_out) == rows_of(tuple(shards))
    assert len(rows_of(held_out)) == max(1, int(total * fraction))


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_to_hold_one_out_are_refused(rows):
    with pytest.raises(BadInput, match="too few to hold out"):
        split_tail([shard(rows)], 0.01)


def test_a_row_of_text_predicts_its_next_token_and_nothing_after_the_last(tmp_path):
    row = on_disk(tmp_path, np.array([[1, 2, 3], [4, 5, 6]], np.uint16)).row(0, 1)
    assert row.tokens.tolist() == [4, 5, 6]
    assert row.targets.tolist() == [5, 6, -100]
    assert row.tokens.dtype == row.targets.dtype == np.int64
    assert row.documents is row.positions is None


def test_padding_in_text_shards_is_never_learned(tmp_path):
    row = on_disk(tmp_path, np.array([[7, 8, 1, 1]], np.int32), pad=1).row(0, 0)
    assert row.tokens.tolist() == [7, 8, 1, 1]
    assert row.targets.tolist() == [8, -100, -100, -100]


def test_a_shard_that_starts_inside_its_file_counts_rows_from_there(tmp_path):
    rows = on_disk(tmp_path, np.arange(8).reshape(4, 2))
    inside = replace(rows.manifest.shards[0], start=3, rows=1)
    rows = Rows(replace(rows.manifest, shards=(inside,)), lambda s: tmp_path / s.name)
    assert rows.row(0, 0).tokens.tolist() == [6, 7]
    for outside in (1, -1):
        with pytest.raises(IndexError):
            rows.row(0, outside)


def test_conversations_carry_documents_positions_and_only_learned_targets(tmp_path):
    ids = np.array([[10, 11, 12, 20, 21, 22, 1, 1]], np.uint16)
    flags = np.array(
        [[STARTS, 0, LEARNED, STARTS, LEARNED, LEARNED, PADDING, PADDING]], dtype=np.uint8
    )
    row = on_disk(tmp_path, ids, flags, kind="conversations").row(0, 0)
    assert row.targets.tolist() == [-100, 12, -100, 21, 22, -100, -100, -100]
    assert row.documents.tolist() == [0, 0, 0, 1, 1, 1, -1, -1]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_first_token_of_a_conversation_is_never_the_target_of_the_one_before(tmp_path):
    flags = np.array([[STARTS | LEARNED, LEARNED, STARTS | LEARNED, LEARNED]], dtype=np.uint8)
    rows = on_disk(tmp_path, np.array([[1, 2, 3, 4]]), flags, kind="conversations")
    assert rows.row(0, 0).targets.tolist() == [2, -100, 4, -100]


PAIR = [STARTS | PREFERRED, LEARNED, STARTS, 0, LEARNED, PADDING, PADDING, PADDING]


def preferences(tmp_path, flags, kind="pairs"):
    ids = np.arange(len(flags), dtype=np.uint16)[None]
    return on_disk(tmp_path, ids, np.array([flags], np.uint8), kind=kind).row(0, 0)


def test_a_pair_is_two_documents_and_its_sides_are_known(tmp_path):
    """Padding has position 0, so that rows may be longer than the context."""
    row = preferences(tmp_path, PAIR)
    assert row.positions.tolist() == [0, 1, 0, 1, 2, 0, 0, 0]
    assert row.sides.tolist() == [1, -1]
    assert row.documents.tolist() == [0, 0, 1, 1, 1, -1, -1, -1]
    assert row.targets.tolist() == [1, -100, -100, 4, -100, -100, -100, -100]


def test_a_row_whose_sequences_are_not_pairs_is_refused(tmp_path):
    flags = [STARTS, LEARNED, STARTS | PREFERRED, LEARNED]
    with pytest.raises(BadInput, match=r"shard_00000\.npy row 0: its sequences are not pairs"):
        preferences(tmp_path, flags)


def test_labels_may_come_in_any_order_and_conversations_have_no_sides(tmp_path):
    flags = [STARTS, LEARNED, STARTS | PREFERRED, LEARNED, STARTS | PREFERRED, LEARNED]
    row = preferences(tmp_path, flags, "labels")
    assert row.sides.tolist() == [-1, 1, 1]
    assert preferences(tmp_path, [STARTS, LEARNED], "conversations").sides is None


def test_a_shard_shorter_than_its_manifest_says_is_refused(tmp_path):
    rows = on_disk(tmp_path, np.zeros((4, 2), np.uint16))
    np.save(tmp_path / "shard_00000.npy", np.zeros((3, 2), np.uint16))
    with pytest.raises(BadInput, match="has 3 rows, but its manifest needs 4"):
        rows.row(0, 0)


def test_few_shards_stay_open_however_many_are_read_and_a_released_one_is_found_again(tmp_path):
    fetched = []
    shards = []
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((2, 2), number))
        shards.append(describe(tmp_path / f"{number}.npy", 2))

    def path_of(wanted):
        fetched.append(wanted.name)
        return tmp_path / wanted.name

    rows = Rows(Manifest("tokens", 2, 10, tuple(shards)), path_of, max_open=2)
    for number in (0, 0, 1, 0, 2, 0, 1):
        assert rows.row(number, 1).tokens.tolist() == [number, number]
    assert fetched == ["0.npy", "1.npy", "2.npy", "1.npy"]
    rows.release()
    rows.row(1, 0)
    assert fetched[-2:] == ["1.npy", "1.npy"]


def test_shards_are_unmapped_as_soon_as_nobody_reads_them(tmp_path):
    rows = on_disk(tmp_path, np.zeros((4, 2), np.uint16))
    rows.row(0, 0)
    gone = weakref.ref(rows)
    del rows
    assert gone() is None


def test_a_described_file_is_what_it_says(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8), np.int32))
    described = describe(tmp_path / "a.npy", 4)
    assert described.rows == 6
    assert described.dtype == "int32"
    assert described.bytes == (tmp_path / "a.npy").stat().st_size
    assert described.sha256 == sha256_file(tmp_path / "a.npy")
