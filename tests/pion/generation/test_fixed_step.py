"""A step whose tensors stay where they are computes what a step of growing tensors computes."""

import pytest
import torch

from pion.bench.models import check_model, scrambled
from pion.config.presets import FAMILIES
from pion.generation import fixed_step
from pion.generation.decoding import cache_tokens, last_logits
from pion.generation.fixed_step import FixedStep, Shape, shape_of
from pion.model.attention.cache import KVCache
from tests.support.operations import Operations

# A model of each family, and one with learned positions.
MODELS = {family: check_model(family, tiny=True) for family in FAMILIES}
MODELS["learned positions"] = check_model("pion", tiny=True, positions="learned")
LENGTHS = {"one text": [20], "different": [3, 25, 10]}
LEAST_ENTRIES = 16


@pytest.fixture(autouse=True)
def _few_entries(monkeypatch):
    monkeypatch.setattr(fixed_step, "LEAST_ENTRIES", LEAST_ENTRIES)


@pytest.fixture(params=MODELS)
def model(request):
    return scrambled(MODELS[request.param]).joined()


def read(model, lengths):
    """Return a cache with the beginnings of texts, and the texts."""
    config, randomness = model.config, torch.Generator().manual_seed(0)
    shape = (len(lengths), config.seq_len)
    ids = torch.randint(config.vocab_size, shape, generator=randomness).tolist()
    cache = KVCache(config, config.seq_len, len(lengths))
    for row, length in enumerate(lengths):
        cache_tokens(model, [ids[row][:length]], cache, row)
    return cache, ids


@pytest.mark.parametrize("texts", LENGTHS)
def test_each_step_is_the_usual_step_up_to_rounding(texts, model):
    """To the end of the context: rings wrap, segments are filled, and the entries double."""
    lengths = LENGTHS[texts]
    (usual, ids), (fixed, _) = read(model, lengths), read(model, lengths)
    places = addresses(fixed)
    steps = {}
    for step in range(model.config.seq_len - max(lengths)):
        tokens = [row[length + step] for row, length in zip(ids, lengths)]
        expected = cache_tokens(model, [[token] for token in tokens], usual)
        shape = shape_of(fixed, len(lengths))
        steps.setdefault(shape, FixedStep(model, fixed, shape)).write(tokens)
        hidden, logits = steps[shape].compute()
        fixed.grow(0, len(lengths), 1)
        torch.testing.assert_close(hidden, expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(logits[:, 0], last_logits(model, expected), rtol=0, atol=2e-5)
    assert fixed.lengths == usual.lengths
    assert {shape.entries for shape in steps} == {32, model.config.seq_len}
    assert addresses(fixed) == places


def buffers(cache):
    both = [layer.both for layer in cache.layers]
    return [tensor for each in both if each is not None for tensor in each]


def addresses(cache):
    return [(tensor.data_ptr(), tensor.shape) for tensor in buffers(cache)]


def test_the_same_operations_come_in_every_step_of_a_shape(model):
    """A graph has the numbers that the host passes to a kernel, such as where a slice begins."""
    found = []
    for lengths in ([17, 18], [25, 21]):
        cache, ids = read(model, lengths)
        shape = shape_of(cache, 2)
        step = FixedStep(model, cache, shape)
        step.write([ids[0][0], ids[1][0]])
        with Operations() as seen:
            step.compute()
        found.append((shape, [(str(each.func), each.given) for each in seen.calls]))
    assert found[0] == found[1]
    assert len(found[0][1]) > 20


def test_texts_of_other_rows_stay_as_they_are(model):
    cache, ids = read(model, [20, 9, 14])
    before = [tensor[2].clone() for tensor in buffers(cache)]
    step = FixedStep(model, cache, shape_of(cache, 2))
    step.write([ids[0][20], ids[1][9]])
    step.compute()
    after = [tensor[2] for tensor in buffers(cache)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("length", "entries"), [(1, 16), (15, 16), (16, 32), (31, 32), (32, 48), (47, 48)]
)
def test_a_step_sees_at_most_twice_as_many_entries_as_there_are(length, entries):
    cache, _ = read(scrambled(MODELS["pion"]), [length])
    assert shape_of(cache, 1) == Shape(1, entries, False)
