from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pion.data.order import RowOrder
from pion.data.row_flags import LEARNED, PADDING, PREFERRED, STARTS
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Rows
from pion.data.stream import RowStream
from pion.errors import BadInput

SEQ_LEN = 4


def rows_of(folder, ids, flags=None, kind="conversations"):
    ids, flagged = np.array(ids), flags is not None
    writer = ShardWriter(
        folder, seq_len=ids.shape[1], vocab_size=10_000, rows_per_shard=3, conversations=flagged
    )
    new = slice(writer.appended, None)
    writer.append_rows(ids[new], np.array(flags, dtype=np.uint8)[new] if flagged else None)
    kind = kind if flagged else "tokens"
    manifest = Manifest(kind, ids.shape[1], 10_000, writer.finish())
    return Rows(manifest, lambda shard: folder / shard.name)


def text(folder, first_id, rows, seq_len=SEQ_LEN):
    """Return rows of ids that count up from ``first_id``, so that all rows are different."""
    return rows_of(folder, first_id + np.arange(rows * seq_len).reshape(rows, seq_len))


def conversations(folder):
    return rows_of(folder, [[5000, 5001, 5002, 1]] * 4, [[STARTS, LEARNED, LEARNED, PADDING]] * 4)


def preferences(folder, kind):
    flags = [[STARTS | PREFERRED, LEARNED, STARTS, LEARNED]] * 4
    return rows_of(folder, [[5000, 5001, 5002, 1]] * 4, flags, kind)


def stream(*rows, weights=None, seed=0, window=2, mixture_seed=0, documents=None):
    orders = [RowOrder(r.manifest.shard_rows, r.manifest.fingerprint, seed, window) for r in rows]
    return RowStream(list(zip(rows, orders)), weights, mixture_seed, documents)


def test_a_batch_holds_the_rows_asked_for_in_order(tmp_path):
    one = stream(text(tmp_path, 0, 10))
    batch = one.batch([3, 0, 13])
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.tolist() == [one.row(i).tokens.tolist() for i in (3, 0, 13)]
    assert batch.targets.tolist() == [one.row(i).targets.tolist() for i in (3, 0, 13)]
    assert batch.positions is batch.documents is None


def test_a_mixture_with_conversations_has_documents_in_every_batch(tmp_path):
    mixed = stream(text(tmp_path / "a", 0, 6), conversations(tmp_path / "b"), weights=[1, 1])
    assert mixed.total_rows == 10
    seen = set()
    for i in range(20):
        batch = mixed.batch([i])
        is_text = int(batch.tokens[0, 0]) < 5000
        seen.add(is_text)
        assert batch.documents.tolist() == ([[0, 0, 0, 0]] if is_text else [[0, 0, 0, -1]])
        assert batch.positions.tolist() == ([[0, 1, 2, 3]] if is_text else [[0, 1, 2, 0]])
    assert seen == {True, False}


def test_many_threads_read_the_rows_one_thread_reads(tmp_path):
    shared = stream(text(tmp_path / "a", 0, 20), text(tmp_path / "b", 1000, 9), weights=[0.7, 0.3])
    expected = [shared.row(i).tokens.tolist() for i in range(3000)]
    fresh = stream(text(tmp_path / "a", 0, 20), text(tmp_path / "b", 1000, 9), weights=[0.7, 0.3])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: fresh.row(i).tokens.tolist(), range(3000))) == expected


def test_the_shards_needed_next_are_known_ahead(tmp_path):
    a, b = text(tmp_path / "a", 0, 9), text(tmp_path / "b", 100, 3)
    assert sorted(stream(a).upcoming_shards(0, 5)) == [(0, 0), (0, 1), (0, 2)]
    assert sorted(stream(a, b).upcoming_shards(0, 9)) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert len(stream(a).upcoming_shards(0, 2)) == 2


def test_sources_of_different_row_length_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"rows of \[4, 8\] ids"):
        stream(text(tmp_path / "a", 0, 6), text(tmp_path / "b", 0, 6, seq_len=8))


def test_a_stream_without_a_source_is_refused():
    with pytest.raises(BadInput, match="no data source"):
        stream()


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_the_sides_of_preferences_are_separate_documents(tmp_path, kind):
    batch = stream(preferences(tmp_path, kind)).batch([0, 1])
    assert batch.documents.tolist() == [[0, 0, 1, 1]] * 2
    assert batch.positions.tolist() == [[0, 1, 0, 1]] * 2
    assert batch.targets.tolist() == [[5001, -100, 1, -100]] * 2


def test_preferences_are_not_mixed_with_rows_of_another_kind(tmp_path):
    pairs, labels = (preferences(tmp_path / kind, kind) for kind in ("pairs", "labels"))
    with pytest.raises(BadInput, match="rows of labels and of pairs"):
        stream(pairs, labels)
    with pytest.raises(BadInput, match="rows of pairs and of tokens"):
        stream(pairs, text(tmp_path / "text", 0, 4))
    assert stream(pairs, preferences(tmp_path / "more", "pairs")).total_rows == 8


def test_a_batch_of_pairs_has_its_sides_and_counts_the_tokens_of_each_answer(tmp_path):
    batch = stream(preferences(tmp_path, "pairs")).batch([0, 1])
    assert batch.sequences.side.tolist() == [[1, -1]] * 2
    assert batch.sequences.tokens.tolist() == [[1, 1]] * 2
    assert not batch.sequences.reference.any()


def places_in(rows):
    shards = rows.shards()
    return [(source, number, row) for source, number, one in shards for row in range(one.rows)]


def test_numbers_of_a_reference_follow_their_row_in_any_order(tmp_path):
    plain = stream(preferences(tmp_path, "pairs"))
    places = places_in(plain)
    assert len(places) == plain.total_rows == len(set(places))
    assert [plain.number_of(place) for place in places] == list(range(len(places)))
    numbers = {place: [-1.0 - n, -100.0 - n] for n, place in enumerate(places)}
    one = plain.with_references(numbers.__getitem__)
    in_order, by_place = one.batch(range(one.total_rows)), one.batch_at(places)
    assert by_place.sequences.reference.tolist() == [numbers[place] for place in places]
    assert sorted(in_order.sequences.reference.tolist()) == sorted(numbers.values())
    assert torch.equal(one.batch_at(places).tokens, plain.batch_at(places).tokens)
    before = plain.batch([0]).sequences
    assert not before.reference.any()


def test_numbers_of_a_reference_for_other_sequences_are_refused(tmp_path):
    one = stream(preferences(tmp_path, "pairs")).with_references(lambda place: [-1.0])
    with pytest.raises(BadInput, match="has 2 sequences, and numbers of the reference for 1"):
        one.batch([0])


def test_rows_are_numbered_through_all_shards_of_all_sources(tmp_path):
    pairs = preferences(tmp_path, "pairs")
    one = stream(pairs, pairs)
    assert [one.number_of(place) for place in places_in(one)] == list(range(8))
    assert one.number_of((1, 1, 0)) == 7
    assert one.contents == [pairs.manifest.fingerprint] * 2


# ---------------------------------------------------------------- documents of text

END = 9  # the end-of-text; a tokenizer may give it any id
TEXT = [[5, END, 6, 7, END, 8], [END, END, 5, 6, 7, 8], [5, 6, 7, 8, 5, 6]]
DOCUMENTS = [[0, 1, 1, 1, 2, 2], [1, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0]]
# Two conversations, then padding. The first one has two answers, and each ends with an end-of-text.
TALKS = [[3, END, 4, END, 3, 0]]
FLAGS = [[STARTS, LEARNED, 0, LEARNED, STARTS, PADDING]]


def test_each_end_of_text_begins_a_document_and_rows_are_counted_separately(tmp_path):
    batch = stream(rows_of(tmp_path, TEXT), documents=END).batch(range(3))
    assert batch.documents.dtype == torch.int64
    found = dict(zip(map(tuple, batch.tokens.tolist()), batch.documents.tolist(), strict=True))
    assert found == dict(zip(map(tuple, TEXT), DOCUMENTS, strict=True))
    assert batch.positions is None  # rotary positions are relative


def test_the_last_token_of_a_document_still_learns_that_the_document_ends(tmp_path):
    rows = rows_of(tmp_path, TEXT)
    within, whole = stream(rows, documents=END).batch(range(3)), stream(rows).batch(range(3))
    assert torch.equal(within.targets, whole.targets)
    assert whole.documents is None


def test_a_conversation_keeps_its_context_after_an_answer(tmp_path):
    talks = rows_of(tmp_path, TALKS, FLAGS)
    with_rule, without = stream(talks, documents=END).batch([0]), stream(talks).batch([0])
    assert with_rule.documents.tolist() == [[0, 0, 0, 0, 1, -1]]
    assert with_rule.sequences is without.sequences is None  # no preferences
    for name in ("tokens", "targets", "positions", "documents"):
        assert torch.equal(getattr(with_rule, name), getattr(without, name)), name
