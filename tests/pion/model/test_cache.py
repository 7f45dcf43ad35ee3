"""Cached decoding gives the logits of the full forward pass, for any split of the tokens."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.model.cache import KVCache
from pion.model.decoder import Decoder

TOKENS = 24


def model(**overrides):
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48, vocab_size=61, seq_len=TOKENS
    )
    # The weights are large, so that attention is far from uniform and a wrong mask shows.
    return Decoder(ModelConfig.from_dict(config.to_dict() | {"init_std": 0.3} | overrides))


MODELS = {"plain": model(), "softcapped": model(softcap=1.5)}
IDS = torch.randint(0, 61, (2, TOKENS), generator=torch.Generator().manual_seed(1))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), cuts=st.sets(st.integers(1, TOKENS - 1)))
def test_any_split_of_the_tokens_gives_the_logits_of_the_whole(name, cuts):
    decoder = MODELS[name]
    edges = [0, *sorted(cuts), TOKENS]
    cache = KVCache(decoder.config)
    with torch.inference_mode():
        parts = [decoder(IDS[:, start:end], cache=cache) for start, end in pairwise(edges)]
        whole = decoder(IDS)
    assert cache.length == TOKENS
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-4)


def test_a_softcap_changes_the_logits_so_that_its_cached_test_means_something():
    plain = model()
    capped = model(softcap=1.5)
    assert (plain(IDS) - capped(IDS)).abs().max() > 0.1


def test_under_bf16_autocast_the_cache_holds_bf16_and_agrees_with_the_whole():
    decoder = model()
    cache = KVCache(decoder.config)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        parts = [decoder(IDS[:, :10], cache=cache), decoder(IDS[:, 10:], cache=cache)]
        whole = decoder(IDS)
    assert cache.layers[0].keys.dtype == cache.layers[0].values.dtype == torch.bfloat16
    difference = (torch.cat(parts, dim=1) - whole).float()
    assert difference.norm() < 0.02 * whole.float().norm()


def test_room_is_allocated_once():
    decoder = model()
    cache = KVCache(decoder.config)
    decoder(IDS[:, :3], cache=cache)
    before = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    for position in range(3, TOKENS):
        decoder(IDS[:, position : position + 1], cache=cache)
    after = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    assert after == before


def test_tokens_beyond_the_context_are_refused_before_anything_is_stored():
    decoder = model()
    cache = KVCache(decoder.config)
    decoder(IDS, cache=cache)
    with pytest.raises(BadInput, match=f"{TOKENS + 1} tokens are more than .* {TOKENS}"):
        decoder(IDS[:, :1], cache=cache)
    assert cache.length == TOKENS


def test_a_smaller_cache_says_when_it_is_full():
    decoder = model()
    cache = KVCache(decoder.config, max_tokens=4)
    with pytest.raises(ValueError, match="5 tokens don't fit a cache of 4"):
        decoder(IDS[:, :5], cache=cache)


def test_documents_and_a_cache_exclude_each_other():
    decoder = model()
    with pytest.raises(ValueError, match="documents"):
        decoder(IDS, cache=KVCache(decoder.config), documents=torch.zeros_like(IDS))
