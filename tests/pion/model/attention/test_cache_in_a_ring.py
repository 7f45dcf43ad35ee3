"""Layers with windows keep what their windows show: as many keys, however long the text becomes."""

import random

import pytest
import torch

from pion.config.parts import Windows
from pion.model.attention import cache as cache_module
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

TOKENS, WINDOW, BLOCK, SPARE = 200, 24, 8, 6
IDS = torch.randint(0, 64, (3, TOKENS), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _small_spare(monkeypatch):
    monkeypatch.setattr(cache_module, "SPARE", SPARE)


@pytest.fixture(scope="module")
def model():
    """A model with layers of both windows."""
    torch.manual_seed(0)
    windows = Windows(tokens=WINDOW, block=BLOCK)
    return Decoder(tiny_config(seq_len=TOKENS, n_layers=6, init_std=0.3, windows=windows))


@pytest.fixture(scope="module")
def whole(model):
    with torch.inference_mode():
        return model.hidden(IDS)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("piece", [1, SPARE, SPARE + 1, WINDOW + 3, 70, TOKENS])
def test_any_pieces_give_the_results_of_the_whole(piece, model, whole):
    cache = KVCache(model.config)
    with torch.inference_mode():
        parts = [model.hidden(part, cache=cache) for part in IDS.split(piece, dim=1)]
    same(torch.cat(parts, dim=1), whole)
    entries = {layer.both.shape[3] for layer in cache.layers if layer.both is not None}
    assert entries == {WINDOW + SPARE, BLOCK + SPARE}


def test_rows_of_different_lengths_go_on_together(model, whole):
    """Some have filled their rings, some have not; each pass takes back some of its tokens."""
    draw, lengths = random.Random(2), [3, 90, 150]
    cache = KVCache(model.config, rows=3)
    with torch.inference_mode():
        for row, length in enumerate(lengths):
            model.hidden(IDS[row : row + 1, :length], cache=cache, row=row)
        while max(lengths) + SPARE <= TOKENS:
            count = draw.randint(1, SPARE)
            kept = [draw.randint(1, count) for _ in lengths]
            new = torch.stack([IDS[row, at : at + count] for row, at in enumerate(lengths)])
            for row, right in enumerate(kept):
                new[row, right:] += 1  # these are wrong, and taken back
            hidden = model.hidden(new % 64, cache=cache)
            for row, right in enumerate(kept):
                at = lengths[row]
                same(hidden[row, :right], whole[row, at : at + right])
                lengths[row] += right
                cache.cut(row, lengths[row])
    assert cache.lengths == lengths


def test_a_row_says_what_it_has_lost(model, whole):
    cache = KVCache(model.config, rows=2)
    with torch.inference_mode():
        model.hidden(IDS[:1, :100], cache=cache)
        assert [length for length in range(101) if cache.can_cut(0, length)] == [
            0,
            *range(100 - SPARE, 101),
        ]
        with pytest.raises(ValueError, match="row 0 of 100 tokens can't be cut to 50"):
            cache.cut(0, 50)
        cache.cut(0, 100 - SPARE)
        assert not cache.can_cut(0, 99 - SPARE)
        cache.copy(0, 1, 100 - SPARE)
        at = 100 - SPARE
        same(model.hidden(IDS[:1, at : at + 3], cache=cache, row=1)[0], whole[0, at : at + 3])
        cache.cut(0, 0)
        same(model.hidden(IDS[1:2, :9], cache=cache)[0], whole[1, :9])
        assert cache.can_cut(0, 4)  # nothing has been overwritten since it was empty


def test_a_cache_is_as_large_as_the_windows(model):
    config = model.config
    cache = KVCache(config)
    with torch.inference_mode():
        model.hidden(IDS[:1, :1], cache=cache)
    each = 2 * config.n_kv_heads * config.head_dim * 4
    long = [layer for layer in range(6) if layer % 4 == 0 or layer == 5]
    entries = len(long) * (WINDOW + SPARE) + (6 - len(long)) * (BLOCK + SPARE)
    assert cache.bytes_per_row() == each * entries
