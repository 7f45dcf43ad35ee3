from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from pion.data.order import RowOrder, rank_rows, step_rows
from pion.data.row_flags import LEARNED, PADDING, PREFERRED, STARTS
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Rows
from pion.data.stream import RowStream
from pion.errors import BadInput

SEQ_LEN = 4


def text(folder: Path, first_id: int, rows: int, seq_len: int = SEQ_LEN) -> Rows:
    """Return rows of ids that count up from ``first_id``, so that all rows are different."""
    ids = first_id + np.arange(rows * seq_len).reshape(rows, seq_len)
    writer = ShardWriter(folder, seq_len=seq_len, vocab_size=10_000, rows_per_shard=3)
    writer.append_rows(ids[writer.appended :])
    manifest = Manifest("tokens", seq_len, 10_000, writer.finish())
    return Rows(manifest, lambda shard: folder / shard.name)


def conversations(folder: Path) -> Rows:
    ids = np.array([[5000, 5001, 5002, 1]] * 4)
    flags = np.array([[STARTS, LEARNED, LEARNED, PADDING]] * 4, dtype=np.uint8)
    writer = ShardWriter(
        folder, seq_len=SEQ_LEN, vocab_size=10_000, rows_per_shard=3, conversations=True
    )
    writer.append_rows(ids, flags)
    manifest = Manifest("conversations", SEQ_LEN, 10_000, writer.finish())
    return Rows(manifest, lambda shard: folder / shard.name)


def stream(
    *rows: Rows,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    window: int = 2,
    mixture_seed: int = 0,
) -> RowStream:
    return RowStream(
        [(r, RowOrder(r.manifest.shard_rows, r.manifest.fingerprint, seed, window)) for r in rows],
        weights,
        mixture_seed,
    )


def test_a_batch_holds_the_rows_asked_for_in_order(tmp_path: Path) -> None:
    one = stream(text(tmp_path, 0, 10))
    batch = one.batch([3, 0, 13])
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.tolist() == [one.row(i).tokens.tolist() for i in (3, 0, 13)]
    assert batch.targets.tolist() == [one.row(i).targets.tolist() for i in (3, 0, 13)]
    assert batch.positions is batch.documents is None


def test_an_epoch_holds_every_row_of_the_files_once(tmp_path: Path) -> None:
    one = stream(text(tmp_path, 0, 10))
    assert one.total_rows == 10
    for epoch in (0, 1, 5):
        batch = one.batch(range(10 * epoch, 10 * epoch + 10))
        assert sorted(batch.tokens.flatten().tolist()) == list(range(40))


def test_ranks_and_micro_batches_together_see_what_one_process_sees(tmp_path: Path) -> None:
    rows, _ = step_rows(7, 8)
    whole = stream(text(tmp_path, 0, 10)).batch(rows).tokens
    parts = [
        stream(text(tmp_path, 0, 10)).batch(micro).tokens
        for rank in range(3)
        for micro in rank_rows(rows, rank, 3, 2)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_a_mixture_with_conversations_has_documents_in_every_batch(tmp_path: Path) -> None:
    mixed = stream(text(tmp_path / "a", 0, 6), conversations(tmp_path / "b"), weights=[1, 1])
    assert mixed.total_rows == 10
    seen = set()
    for i in range(20):
        batch = mixed.batch([i])
        assert batch.documents is not None
        assert batch.positions is not None
        is_text = int(batch.tokens[0, 0]) < 5000
        seen.add(is_text)
        assert batch.documents.tolist() == ([[0, 0, 0, 0]] if is_text else [[0, 0, 0, -1]])
        assert batch.positions.tolist() == ([[0, 1, 2, 3]] if is_text else [[0, 1, 2, 0]])
    assert seen == {True, False}


def test_many_threads_read_the_rows_one_thread_reads(tmp_path: Path) -> None:
    shared = stream(text(tmp_path / "a", 0, 20), text(tmp_path / "b", 1000, 9), weights=[0.7, 0.3])
    expected = [shared.row(i).tokens.tolist() for i in range(3000)]
    fresh = stream(text(tmp_path / "a", 0, 20), text(tmp_path / "b", 1000, 9), weights=[0.7, 0.3])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: fresh.row(i).tokens.tolist(), range(3000))) == expected


def test_the_fingerprint_changes_with_everything_that_decides_the_rows(tmp_path: Path) -> None:
    a, b = text(tmp_path / "a", 0, 6), text(tmp_path / "b", 100, 6)
    streams = [
        stream(a),
        stream(b),
        stream(a, seed=1),
        stream(a, window=1),
        stream(a, b),
        stream(b, a),
        stream(a, b, seed=1),
        stream(a, b, mixture_seed=1),
        stream(a, b, weights=[2, 1]),
    ]
    assert len({s.fingerprint for s in streams}) == len(streams)
    assert stream(a, b, weights=[1, 1]).fingerprint == stream(a, b).fingerprint
    assert stream(a).fingerprint == stream(text(tmp_path / "copy", 0, 6)).fingerprint


def test_the_shards_needed_next_are_known_ahead(tmp_path: Path) -> None:
    a, b = text(tmp_path / "a", 0, 9), text(tmp_path / "b", 100, 3)
    assert sorted(stream(a).upcoming_shards(0, 5)) == [(0, 0), (0, 1), (0, 2)]
    assert sorted(stream(a, b).upcoming_shards(0, 9)) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert len(stream(a).upcoming_shards(0, 2)) == 2


def test_sources_of_different_row_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"rows of \[4, 8\] ids"):
        stream(text(tmp_path / "a", 0, 6), text(tmp_path / "b", 0, 6, seq_len=8))


def test_a_stream_without_a_source_is_refused() -> None:
    with pytest.raises(BadInput, match="no data source"):
        stream()


def preferences(folder: Path, kind: Literal["pairs", "labels"]) -> Rows:
    ids = np.array([[5000, 5001, 5002, 1]] * 4)
    flags = np.array([[STARTS | PREFERRED, LEARNED, STARTS, LEARNED]] * 4, dtype=np.uint8)
    writer = ShardWriter(
        folder, seq_len=SEQ_LEN, vocab_size=10_000, rows_per_shard=3, conversations=True
    )
    writer.append_rows(ids, flags)
    manifest = Manifest(kind, SEQ_LEN, 10_000, writer.finish())
    return Rows(manifest, lambda shard: folder / shard.name)


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_the_sides_of_preferences_are_separate_documents(
    tmp_path: Path, kind: Literal["pairs", "labels"]
) -> None:
    batch = stream(preferences(tmp_path, kind)).batch([0, 1])
    assert batch.documents is not None
    assert batch.positions is not None
    assert batch.documents.tolist() == [[0, 0, 1, 1]] * 2
    assert batch.positions.tolist() == [[0, 1, 0, 1]] * 2
    assert batch.targets.tolist() == [[5001, -100, 1, -100]] * 2


def test_preferences_are_not_mixed_with_rows_of_another_kind(tmp_path: Path) -> None:
    pairs, labels = (preferences(tmp_path / kind, kind) for kind in ("pairs", "labels"))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="rows of labels and of pairs"):
        stream(pairs, labels)
    with pytest.raises(BadInput, match="rows of pairs and of tokens"):
        stream(pairs, text(tmp_path / "text", 0, 4))
    assert stream(pairs, preferences(tmp_path / "more", "pairs")).total_rows == 8


def test_a_batch_of_pairs_has_its_sides_and_counts_the_tokens_of_each_answer(
    tmp_path: Path,
) -> None:
    batch = stream(preferences(tmp_path, "pairs")).batch([0, 1])
    assert batch.sequences is not None
    assert batch.sequences.side.tolist() == [[1, -1]] * 2
    assert batch.sequences.tokens.tolist() == [[1, 1]] * 2
    assert not batch.sequences.reference.any()


def test_rows_of_labels_need_no_partner(tmp_path: Path) -> None:
    batch = stream(preferences(tmp_path, "labels")).batch([0])
    assert batch.sequences is not None
    assert batch.sequences.side.shape == (1, 2)


def test_numbers_of_a_reference_follow_their_row_in_any_order(tmp_path: Path) -> None:
    plain = stream(preferences(tmp_path, "pairs"))
    places = list(plain.places())
    assert len(places) == plain.total_rows == len(set(places))
    assert [plain.number_of(place) for place in places] == list(range(len(places)))
    numbers = {place: [-1.0 - n, -100.0 - n] for n, place in enumerate(places)}
    one = plain.with_references(numbers.__getitem__)
    in_order, by_place = one.batch(range(one.total_rows)), one.batch_at(places)
    assert in_order.sequences is not None
    assert by_place.sequences is not None
    assert by_place.sequences.reference.tolist() == [numbers[place] for place in places]
    assert sorted(in_order.sequences.reference.tolist()) == sorted(numbers.values())
    assert torch.equal(one.batch_at(places).tokens, plain.batch_at(places).tokens)
    before = plain.batch([0]).sequences
    assert before is not None
    assert not before.reference.any()


def test_numbers_of_a_reference_for_other_sequences_are_refused(tmp_path: Path) -> None:
    one = stream(preferences(tmp_path, "pairs")).with_references(lambda place: [-1.0])
    with pytest.raises(BadInput, match="has 2 sequences, and numbers of the reference for 1"):
        one.batch([0])


def test_rows_are_numbered_through_all_shards_of_all_sources(tmp_path: Path) -> None:
    pairs = preferences(tmp_path, "pairs")
    one = stream(pairs, pairs)
    assert [one.number_of(place) for place in one.places()] == list(range(8))
    assert one.number_of((1, 1, 0)) == 7
    assert one.contents == [pairs.manifest.fingerprint] * 2
