"""Models of other families compute what their classes in transformers compute, also in training.

Rows of tokens are longer than the windows. test_stock_rows.py compares longer rows.
"""

from functools import lru_cache

import pytest
import torch

from pion.config.lora import Lora
from pion.formats.huggingface.architectures import from_transformers
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.lora_projections import add_lora
from tests.support.stock_models import NAMES, randomize, stock_model, stored, tokens
from tests.support.tiny_config import tiny_config

TOKENS = tokens(101, rows=2)
GIVEN, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]
each_name = pytest.mark.parametrize("name", NAMES)


@lru_cache(maxsize=1)
def theirs_of(name):
    return stock_model(name)


def ours_of(name):
    theirs = theirs_of(name)
    return Decoder.from_state(*from_transformers(theirs.config.to_dict(), stored(theirs)))


@each_name
def test_logits_and_gradients_are_those_of_transformers(name):
    theirs, ours = theirs_of(name), ours_of(name)
    logits = theirs(GIVEN, use_cache=False).logits
    torch.testing.assert_close(ours(GIVEN), logits, rtol=2e-5, atol=2e-5)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TARGETS.flatten())
    theirs.zero_grad()
    loss.backward()
    own = ours.loss(GIVEN, TARGETS)
    own.backward()
    torch.testing.assert_close(own, loss, rtol=2e-6, atol=2e-6)
    gradients = {name: weight.grad for name, weight in stored(theirs, parameters=True).items()}
    _, expected = from_transformers(theirs.config.to_dict(), gradients)
    for name, weight in ours.named_parameters():
        largest = expected[name].abs().max()
        assert largest > 0, name
        apart = (weight.grad - expected[name]).abs().max() / largest
        assert apart <= 2e-5, name


@each_name
@pytest.mark.parametrize("joined", [False, True], ids=["plain", "joined"])
@torch.no_grad()
def test_with_a_cache_at_odd_splits_hidden_states_are_those_of_the_whole(name, joined):
    model = ours_of(name)
    whole = model.hidden(GIVEN)
    model = model.joined() if joined else model
    cache = KVCache(model.config, rows=2)
    parts = [model.hidden(part, cache=cache) for part in GIVEN.split((73, 1, 1, 20, 5), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=2e-5, atol=2e-5)


@each_name
@torch.no_grad()
def test_packed_documents_are_as_each_alone(name):
    model = ours_of(name)
    first, second = GIVEN[:1, :70], GIVEN[1:, :100]
    positions = torch.cat([torch.arange(70), torch.arange(100)])[None]
    documents = torch.tensor([[0] * 70 + [1] * 100])
    packed = model.hidden(torch.cat([first, second], 1), positions=positions, documents=documents)
    alone = torch.cat([model.hidden(first), model.hidden(second)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=2e-5, atol=2e-5)


@each_name
def test_recomputed_gradients_are_the_same(name):
    model, found = ours_of(name), []
    for recompute in (False, True):
        model.zero_grad()
        options = StepOptions(recompute=recompute)
        model.loss(GIVEN, TARGETS, options=options).backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


@each_name
@torch.no_grad()
def test_new_additions_of_lora_change_nothing(name):
    model = ours_of(name)
    expected = model(GIVEN)
    add_lora(model, Lora(), seed=0)
    assert torch.equal(model(GIVEN), expected)


@torch.no_grad()
def test_documents_in_rows_that_are_not_longer_than_a_window_attend_as_without_windows():
    """On a CPU, they attend one after another in such long rows."""
    found = []
    for windows in (None, {"tokens": 700, "block": 1, "full_layers": [1]}, {"tokens": 1400}):
        model = Decoder(tiny_config(windows=windows and {"block": 7} | windows))
        randomize(model)
        tokens = torch.arange(700)[None]
        found.append(model.hidden(tokens % 61, positions=tokens % 20, documents=tokens // 20 % 34))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@torch.no_grad()
def test_tokens_beyond_a_ring_of_keys_see_what_they_see_in_the_whole_row():
    windows = {"tokens": 7, "block": 1, "full_layers": [1]}
    model = Decoder(tiny_config(seq_len=120, windows=windows))
    randomize(model)
    given = torch.randint(0, 64, (2, 120), generator=torch.Generator().manual_seed(2))
    whole = model.hidden(given)
    cache = KVCache(model.config, rows=2)
    parts = [model.hidden(part, cache=cache) for part in given.split((60, *[1] * 30, 30), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
