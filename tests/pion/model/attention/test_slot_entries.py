"""Slots keep what the window has left, and nothing sees its future."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from pion.config.model_config import ModelConfig
from pion.config.slots import Slots
from pion.errors import BadInput
from pion.model.attention.cache import SPARE, KVCache
from pion.model.attention.masks import FLEX_BLOCK
from pion.model.attention.slot_entries import entries_of, visible
from pion.model.attention.slot_masks import slot_block_mask, visited_by_slots
from pion.model.decoder import Decoder

SHAPE = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_ff": 64}
SHAPE |= {"vocab_size": 50, "seq_len": 512}


def model(**slots):
    torch.manual_seed(0)
    found = Decoder(ModelConfig(**SHAPE, slots=Slots(**slots)))
    with torch.no_grad():
        for weight in found.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return found


def text(tokens, rows=1):
    return torch.randint(0, 50, (rows, tokens), generator=torch.Generator().manual_seed(1))


def rows_of(lengths, padding):
    """Return the document of each token: documents of these lengths, and padding behind them."""
    numbers = [number for number, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor([numbers + [-1] * padding])


# ---------------------------------------------------------------- what sees what


def oracle(slots, documents):
    """Return what sees what, by the four rules that `slot_entries.py` states."""
    size, each, length = slots.segment, slots.per_segment, len(documents)
    begins = [documents.index(number) for number in documents]
    kinds = [("text", documents[n], n - begins[n], 0) for n in range(length)]
    for n in range(length):
        time = n - begins[n]
        if documents[n] >= 0 and (time + 1) % size == 0:
            kinds += [("slot", documents[n], time, i) for i in range(each)]
    missing = length + each * (length // size) - len(kinds)
    kinds += [("unused", -9, n, 0) for n in range(missing)]
    seen = torch.zeros(len(kinds), len(kinds), dtype=torch.bool)
    for q, (query, of_query, t_q, i_q) in enumerate(kinds):
        for k, (key, of_key, t_k, i_k) in enumerate(kinds):
            if of_query != of_key:
                continue
            near = t_q // size - t_k // size < slots.window
            seen[q, k] = {
                ("text", "text"): t_k <= t_q and near,
                ("text", "slot"): t_k < t_q,
                ("slot", "text"): t_k <= t_q and near,
                ("slot", "slot"): t_k < t_q or (t_k == t_q and i_k <= i_q),
                ("unused", "unused"): q == k,
            }.get((query, key), False)
    return seen


SOME_SLOTS = st.builds(
    Slots, per_segment=st.integers(1, 3), segment=st.integers(1, 7), window=st.integers(1, 4)
)
DOCUMENTS = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@given(SOME_SLOTS, st.integers(1, 40))
def test_rows_that_are_one_document_share_their_entries(slots, length):
    tokens = torch.zeros(3, length, dtype=torch.int64)
    alone = entries_of(slots, None, None, tokens)
    assert len(alone.order) == 1
    one = entries_of(slots, None, torch.zeros(1, length, dtype=torch.int64), tokens[:1])
    assert torch.equal(alone.order, one.order)
    seen = visible(alone, alone, slots.window)
    assert slots.keys_seen(length) == pytest.approx(
        (seen.sum().item() - seen.shape[-1] / 2) / length
    )


def test_a_slot_has_the_position_of_the_last_token_of_its_segment():
    slots = Slots(per_segment=2, segment=3, window=1)
    documents = rows_of([4, 4], 0)
    entries = entries_of(slots, None, documents, documents)
    assert entries.positions[0, 8:].tolist()[:4] == [2, 2, 6, 6]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    entries = entries_of(slots, positions, documents, documents)
    assert entries.positions[0, 8:].tolist()[:4] == [2, 2, 2, 2]


@pytest.mark.parametrize("documents", [None, [300, 37, 400, 100, 187]])
def test_blocks_of_flex_attention_hide_nothing_that_is_seen(documents):
    slots = Slots(per_segment=4, segment=64, window=2)
    tokens = text(1024)
    given = None if documents is None else rows_of(documents, 0)
    entries = entries_of(slots, None, given, tokens)
    seen = visible(entries, entries, slots.window)
    size = seen.shape[-1]
    visited = visited_by_slots(slots, entries, FLEX_BLOCK)[0]
    blocks = -(-size // FLEX_BLOCK)
    padded = torch.zeros(blocks * FLEX_BLOCK, blocks * FLEX_BLOCK, dtype=torch.bool)
    padded[:size, :size] = seen[0, 0]
    needed = padded.view(blocks, FLEX_BLOCK, blocks, FLEX_BLOCK).any(dim=3).any(dim=1)
    assert not (needed & ~visited).any()
    assert visited.sum() <= 0.6 * blocks * blocks
    query, key, value = torch.randn(3, 1, 2, size, 16).unbind()
    found = flex_attention(query, key, value, block_mask=slot_block_mask(slots, entries))
    expected = scaled_dot_product_attention(query, key, value, attn_mask=seen)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@given(SOME_SLOTS, st.lists(DOCUMENTS, min_size=1, max_size=3), st.integers(1, 5))
def test_entries_see_what_the_rules_say_and_no_block_that_is_seen_is_left_out(
    slots, lengths, block
):
    """Rows of other documents, and blocks so small that their borders are everywhere."""
    longest = max(map(sum, lengths))
    documents = torch.cat([rows_of(own, longest - sum(own)) for own in lengths])
    entries = entries_of(slots, None, documents, documents)
    seen = visible(entries, entries, slots.window)[:, 0]
    for row, numbers in enumerate(documents.tolist()):
        assert torch.equal(seen[row], oracle(slots, numbers))
    assert seen.any(dim=-1).all()  # without a key, numbers would be NaN
    visited = visited_by_slots(slots, entries, block)
    opened = visited.repeat_interleave(block, dim=1).repeat_interleave(block, dim=2)
    size = seen.shape[-1]
    assert not (seen & ~opened[:, :size, :size]).any()


# ---------------------------------------------------------------- the model


def test_a_token_moves_no_bit_before_it_and_is_remembered_beyond_the_window():
    decoder, tokens = model(per_segment=2, segment=8, window=1), text(100)
    before = decoder(tokens)[0]
    for changed in (3, 7, 8, 40):
        others = tokens.clone()
        others[0, changed] = (others[0, changed] + 1) % 50
        after = decoder(others)[0]
        moved = (after != before).any(dim=-1)
        assert not moved[:changed].any()
        # Two layers without slots see no further than to the end of the segment.
        assert moved[changed:].all()


@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 17])
def test_texts_of_different_lengths_meet_the_ends_of_segments_in_other_passes(count):
    """Of each pass, a row fills no segment, one, or several."""
    decoder, tokens = model(per_segment=2, segment=8, window=2), text(70, rows=3)
    starts = [6, 7, 16]
    cache = KVCache(decoder.config, 70, rows=3)
    found = [[], [], []]
    with torch.inference_mode():
        whole = decoder(tokens)
        for row, start in enumerate(starts):
            decoder.hidden(tokens[row : row + 1, :start], cache=cache, row=row)
        for done in range(0, 55 - count, count):
            pieces = [
                tokens[row, start + done : start + done + count] for row, start in enumerate(starts)
            ]
            logits = decoder(torch.stack(pieces), cache=cache)
            for row in range(3):
                found[row].append(logits[row])
    for row, start in enumerate(starts):
        joined = torch.cat(found[row])
        torch.testing.assert_close(
            joined, whole[row, start : start + len(joined)], rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("lengths", [[70], [8, 9, 7, 16, 30], [1, 40, 29]])
def test_a_packed_document_has_the_logits_and_gradients_it_has_alone(lengths):
    decoder, tokens = model(per_segment=2, segment=8, window=2), text(sum(lengths))
    documents = rows_of(lengths, 0)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    targets = tokens.roll(-1, dims=1)
    packed = decoder(tokens, positions=positions, documents=documents)[0]
    losses, begin = torch.zeros(()), 0
    for length in lengths:
        own = slice(begin, begin + length)
        torch.testing.assert_close(decoder(tokens[:, own])[0], packed[own], rtol=0, atol=1e-4)
        losses = losses + decoder.loss(tokens[:, own], targets[:, own], reduction="sum")
        begin += length
    vectors = decoder.get_parameter("slots.weight")
    (alone,) = torch.autograd.grad(losses, vectors)
    together = decoder.loss(
        tokens, targets, positions=positions, documents=documents, reduction="sum"
    )
    (of_packed,) = torch.autograd.grad(together, vectors)
    assert of_packed.any()
    torch.testing.assert_close(alone, of_packed, rtol=1e-3, atol=1e-3)


def test_a_cut_row_forgets_the_slots_of_what_was_cut():
    decoder, tokens = model(per_segment=2, segment=8, window=2), text(60)
    other = text(60).flip(1)
    for kept in (7, 8, 9, 16, 17, 30):
        cache = KVCache(decoder.config, 60, rows=2)
        with torch.inference_mode():
            decoder.hidden(tokens[:, :40], cache=cache)
            cache.cut(0, kept)
            pieces = [decoder(piece, cache=cache) for piece in other[:, kept:].split(5, dim=1)]
            whole = decoder(torch.cat([tokens[:, :kept], other[:, kept:]], dim=1))
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole[:, kept:], rtol=0, atol=1e-4)


def test_a_long_text_needs_the_window_and_its_slots():
    decoder = model(per_segment=2, segment=8, window=2)
    cache = KVCache(decoder.config, 512, rows=1)
    tokens = text(512)
    with torch.inference_mode():
        pieces = [decoder(piece, cache=cache) for piece in tokens.split(64, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(tokens), rtol=0, atol=1e-4)
    entries = 2 * 8 + SPARE + 2 * (512 // 8) + 2  # the last two are for slots that no row has
    assert cache.bytes_per_row() == 2 * 2 * 4 * 32 * entries


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"slots": {"per_segment": 0}}, "slots.per_segment is 0"),
        ({"slots": {"segment": 0}}, "slots.segment is 0"),
        ({"slots": {"window": 0}}, "slots.window is 0"),
        ({"slots": {"segment": 513}}, "slots.segment 513 is longer than the model's context"),
        ({"windows": {"tokens": 128}}, "can't have windows"),
        ({"values": {"layers": [0]}}, "can't have values"),
        ({"wiring": {"input_mix": True}}, "can't have wiring"),
        ({"gates": True}, "can't have gates"),
        ({"experts": {"n": 4, "d_shared": 16}}, "can't have experts"),
        ({"positions": "learned"}, "can't have positions: learned"),
    ],
)
def test_slots_that_no_model_has_are_refused(changed, message):
    slots = {"per_segment": 2, "segment": 8, "window": 2}
    with pytest.raises(BadInput, match=message):
        ModelConfig.of(SHAPE | {"slots": slots} | changed)
