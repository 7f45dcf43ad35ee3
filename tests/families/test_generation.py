"""Generation with a cache gives the logits of the whole forward pass, however a prompt is cut."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pion
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.parameters import parameter_roles
from tests.families.families import FAMILIES, SEQ_LEN, VOCAB, a_few_families, each_family

SAMPLED = {"stop_ids": (1, 2, 3), "max_tokens": 20, "vocab_size": VOCAB}
IDS = torch.randint(0, VOCAB, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))


def bound(family):
    """Return how far logits may be apart that were computed with other numbers of tokens.

    Where activations are rounded to 8 bits, a last bit of rounding can move one to its neighbor.
    """
    return 5e-2 if family is FAMILIES["ternary"] else 1e-4


@each_family
def test_any_split_of_the_tokens_gives_the_logits_of_the_whole(family):
    model = family.decoder()
    with torch.inference_mode():
        whole = model(IDS)

    @settings(max_examples=2, deadline=None)
    @given(st.sets(st.integers(1, SEQ_LEN - 1)))
    @example(set(range(1, SEQ_LEN)))  # token by token
    def check(cuts):
        cache = KVCache(model.config)
        with torch.inference_mode():
            edges = [0, *sorted(cuts), SEQ_LEN]
            parts = [model(IDS[:, start:end], cache=cache) for start, end in pairwise(edges)]
        assert max(cache.lengths) == SEQ_LEN
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=bound(family))

    check()


@each_family
def test_greedy_generation_takes_the_likeliest_token_of_the_whole_forward_pass(family):
    model, prompt = family.decoder(), IDS[0, :5].tolist()
    ids = prompt + list(pion.generate(model, prompt, temperature=0, stop_ids=(), vocab_size=VOCAB))
    assert len(ids) == SEQ_LEN
    with torch.inference_mode():
        likeliest = model(torch.tensor([ids]))[0].argmax(dim=-1)
    assert ids[5:] == likeliest[4:-1].tolist()


@a_few_families
def test_texts_of_different_lengths_are_continued_together_as_each_alone(family):
    model = family.decoder()
    prompts = [IDS[0, :length].tolist() for length in (1, 5, SEQ_LEN, 9, SEQ_LEN - 1, 2)]
    alone = [list(pion.generate(model, ids, seed=3, **SAMPLED)) for ids in prompts]
    for rows in (1, 2, len(prompts)):
        together = [[] for _ in prompts]
        ended = []
        for number, token in pion.generate_batch(model, prompts, rows=rows, seed=3, **SAMPLED):
            assert number not in ended
            if token is None:
                ended.append(number)
            else:
                together[number].append(token)
        assert sorted(ended) == list(range(len(prompts)))
        assert together == alone
    assert len({len(ids) for ids in alone}) > 2  # some texts end before the others


@a_few_families
def test_a_row_has_the_logits_of_its_text_wherever_it_has_been_moved(family):
    """The first text leaves, so the last text takes its row, which was longer."""
    model = family.decoder()
    cache = KVCache(model.config, SEQ_LEN, rows=3)
    with torch.inference_mode():
        for row, length in enumerate((SEQ_LEN - 2, 3, 7)):
            model.hidden(IDS[:1, :length], cache=cache, row=row)
        cache.swap(0, 2)
        assert cache.lengths == [7, 3, SEQ_LEN - 2]
        hidden = model.hidden(torch.stack([IDS[0, 7:8], IDS[0, 3:4]]), cache=cache)
        whole = model.hidden(IDS[:1])[0]
    torch.testing.assert_close(hidden[:, 0], whole[[7, 3]], rtol=0, atol=bound(family))
    assert cache.lengths == [8, 4, SEQ_LEN - 2]


@a_few_families
def test_several_new_tokens_of_rows_of_different_lengths_and_back(family):
    """Rows take three tokens each, of which some are taken back, and then others follow."""
    model = family.decoder()
    cache = KVCache(model.config, SEQ_LEN, rows=2)
    wrong = (IDS + 1) % VOCAB
    with torch.inference_mode():
        whole = model.hidden(IDS)
        model.hidden(IDS[:1, :9], cache=cache, row=0)
        model.hidden(IDS[1:, :4], cache=cache, row=1)
        new = torch.stack([IDS[0, 9:12], torch.cat([IDS[1, 4:5], wrong[1, 5:7]])])
        hidden = model.hidden(new, cache=cache)
        torch.testing.assert_close(hidden[0], whole[0, 9:12], rtol=0, atol=bound(family))
        torch.testing.assert_close(hidden[1, 0], whole[1, 4], rtol=0, atol=bound(family))
        cache.cut(1, 5)  # two tokens were wrong
        assert cache.lengths == [12, 5]
        hidden = model.hidden(torch.stack([IDS[0, 12:16], IDS[1, 5:9]]), cache=cache)
    for row, start in ((0, 12), (1, 5)):
        expected = whole[row, start : start + 4]
        torch.testing.assert_close(hidden[row], expected, rtol=0, atol=bound(family))


@a_few_families
def test_a_row_that_begins_like_another_has_its_logits(family):
    model = family.decoder()
    cache = KVCache(model.config, SEQ_LEN, rows=2)
    with torch.inference_mode():
        whole = model.hidden(IDS)
        model.hidden(IDS[:1, :20], cache=cache)
        cache.copy(0, 1, 15)
        hidden = model.hidden(IDS[:1, 15:18], cache=cache, row=1)
    torch.testing.assert_close(hidden[0], whole[0, 15:18], rtol=0, atol=bound(family))


@each_family
@pytest.mark.parametrize("joined", [False, True])
def test_bf16_rounds_products_but_neither_gains_nor_routers(family, joined):
    exact = family.decoder()
    model = Decoder.from_state(exact.config, exact.state_dict(), torch.bfloat16)
    if joined:
        model = model.joined()
    roles = parameter_roles(model)
    for name, weight in model.named_parameters():
        rounded = roles[name] in ("matrix", "embedding", "head", "draft")
        assert weight.dtype == (torch.bfloat16 if rounded else torch.float32), name
    with torch.inference_mode():
        whole, logits = exact(IDS), model(IDS).float()
        one_by_one = torch.cat([model(IDS[:, :n])[:, -1:].float() for n in (1, 2, 5)], dim=1)
    error = (logits - whole).square().mean().sqrt() / whole.square().mean().sqrt()
    # Tokens whose router is undecided may go to other experts.
    assert 0 < error < (0.03 if exact.config.experts is None else 0.15)
    assert (one_by_one - logits[:, [0, 1, 4]]).abs().max() < 0.1 * whole.abs().max()


@a_few_families
def test_joined_projections_give_the_same_logits(family):
    model = family.decoder()
    with torch.inference_mode():
        whole = model(IDS)
        joined = model.joined()
        torch.testing.assert_close(joined(IDS), whole, rtol=0, atol=1e-5)
    assert joined.state_dict().keys() == model.state_dict().keys()
