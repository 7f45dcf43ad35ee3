"""Generation with a cache gives the logits of the whole forward pass, however a prompt is cut."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pion
from pion.model.cache import KVCache
from tests.families.families import SEQ_LEN, VOCAB, Family, each_family

IDS = torch.randint(0, VOCAB, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))


@each_family
def test_any_split_of_the_tokens_gives_the_logits_of_the_whole(family: Family) -> None:
    model = family.decoder()
    with torch.inference_mode():
        whole = model(IDS)

    @settings(max_examples=25, deadline=None)
    @given(st.sets(st.integers(1, SEQ_LEN - 1)))
    @example(set(range(1, SEQ_LEN)))  # token by token
    def check(cuts: set[int]) -> None:
        cache = KVCache(model.config)
        with torch.inference_mode():
            edges = [0, *sorted(cuts), SEQ_LEN]
            parts = [model(IDS[:, start:end], cache=cache) for start, end in pairwise(edges)]
        assert cache.length == SEQ_LEN
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-4)

    check()


@each_family
def test_greedy_generation_takes_the_likeliest_token_of_the_whole_forward_pass(
    family: Family,
) -> None:
    model, prompt = family.decoder(), IDS[0, :5].tolist()
    ids = prompt + list(pion.generate(model, prompt, temperature=0, stop_ids=(), vocab_size=VOCAB))
    assert len(ids) == SEQ_LEN
    with torch.inference_mode():
        likeliest = model(torch.tensor([ids]))[0].argmax(dim=-1)
    assert ids[5:] == likeliest[4:-1].tolist()
