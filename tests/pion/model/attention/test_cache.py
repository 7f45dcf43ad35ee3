"""The cache of keys and values: its dtype, its room, and what it refuses.

tests/families/test_generation.py compares cached decoding with the full forward pass.
"""

import ctypes
import mmap

import pytest
import torch

from pion.errors import BadInput
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

TOKENS = 24
IDS = torch.randint(0, 64, (2, TOKENS), generator=torch.Generator().manual_seed(1))


def model():
    torch.manual_seed(0)
    return Decoder(tiny_config(seq_len=TOKENS, init_std=0.3))


def test_under_bf16_autocast_the_cache_holds_bf16_and_agrees_with_the_whole():
    decoder = model()
    cache = KVCache(decoder.config)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        parts = [decoder(IDS[:, :10], cache=cache), decoder(IDS[:, 10:], cache=cache)]
        whole = decoder(IDS)
    assert cache.layers[0].both.dtype == torch.bfloat16
    difference = (torch.cat(parts, dim=1) - whole).float()
    assert difference.norm() < 0.02 * whole.float().norm()


def test_room_is_allocated_once():
    decoder = model()
    cache = KVCache(decoder.config)
    decoder(IDS[:, :3], cache=cache)
    before = [layer.both.data_ptr() for layer in cache.layers]
    for position in range(3, TOKENS):
        decoder(IDS[:, position : position + 1], cache=cache)
    after = [layer.both.data_ptr() for layer in cache.layers]
    assert after == before


def test_a_cache_for_many_tokens_has_room_for_those_that_came(monkeypatch):
    decoder = model()
    whole, cache = KVCache(decoder.config), KVCache(decoder.config)
    decoder(IDS, cache=whole)
    monkeypatch.setattr("pion.model.attention.cache.SMALLEST_ROOM", 5)
    rooms = []
    for position in range(TOKENS):
        decoder(IDS[:, position : position + 1], cache=cache)
        rooms.append(cache.layers[0].both.shape[3])
    assert sorted(set(rooms)) == [5, 12, TOKENS]
    for layer, expected in zip(cache.layers, whole.layers, strict=True):
        torch.testing.assert_close(layer.both, expected.both)


def bytes_in_memory(buffer):
    """Return the bytes of a buffer's pages that the kernel has given memory."""
    begin = buffer.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    size = buffer.data_ptr() + buffer.nbytes - begin
    pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
    asked = ctypes.CDLL(None).mincore(ctypes.c_void_p(begin), ctypes.c_size_t(size), pages)
    assert asked == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def test_rows_take_memory_for_the_tokens_that_they_have():
    """A server's 16 rows of 8,192 tokens of a 135M model took 6 GB for the first question."""
    decoder = Decoder(tiny_config(seq_len=8192))
    cache = KVCache(decoder.config, rows=16)
    decoder(IDS[:, :5], cache=cache)
    buffers = [buffer for layer in cache.layers for buffer in layer.both]
    written = 2 * decoder.config.n_kv_heads * len(buffers) * mmap.PAGESIZE  # a page of each head
    assert 0 < sum(map(bytes_in_memory, buffers)) <= written
    assert sum(buffer.nbytes for buffer in buffers) == 16 * cache.bytes_per_row() > 20 * written


def test_tokens_beyond_the_context_are_refused_before_anything_is_stored():
    decoder = model()
    cache = KVCache(decoder.config)
    decoder(IDS, cache=cache)
    with pytest.raises(BadInput, match=f"{TOKENS + 1} tokens are more than .* {TOKENS}"):
        decoder(IDS[:, :1], cache=cache)
    assert max(cache.lengths) == TOKENS


def test_a_smaller_cache_says_when_it_is_full():
    decoder = model()
    cache = KVCache(decoder.config, max_tokens=4)
    with pytest.raises(ValueError, match="5 tokens don't fit a cache of 4"):
        decoder(IDS[:, :5], cache=cache)


def test_documents_and_a_cache_exclude_each_other():
    decoder = model()
    with pytest.raises(ValueError, match="documents"):
        decoder(IDS, cache=KVCache(decoder.config), documents=torch.zeros_like(IDS))
