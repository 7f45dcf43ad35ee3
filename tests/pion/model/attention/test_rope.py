"""Rotations: from the table of a context, and computed for the tokens that are there."""

import math

import pytest
import torch

from pion.config.parts import Heads, RopeScaling
from pion.model.attention import rope
from pion.model.attention.cache import KVCache
from pion.model.attention.rope import Frequencies, rotation_at, scaled
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

CPU = torch.device("cpu")
SCALING = RopeScaling(factor=8.0, original_max_position_embeddings=256)


def test_a_rotation_by_flipping_is_the_same_and_so_is_its_gradient():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 64, requires_grad=True)
    positions = torch.tensor([[0, 1, 2], [7, 500, 2999]])
    turn = rotation_at(positions, Frequencies(64, 10_000.0))
    factor = torch.randn_like(x)
    found = []
    for turned in (rope.rotate(x, turn), rope._rotate_by_flipping(x, turn.cos, turn.sin)):
        found.append((turned, *torch.autograd.grad((turned * factor).sum(), x)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaling", [None, SCALING])
@pytest.mark.parametrize("rotary", ["full", "half"])
def test_a_model_of_a_long_context_computes_what_one_with_a_table_does(
    rotary, scaling, monkeypatch
):
    torch.manual_seed(0)
    heads = Heads(rotary=rotary)
    model = Decoder(tiny_config(init_std=0.3, rope_scaling=scaling, heads=heads)).eval()
    tokens = torch.randint(0, 64, (2, 12))
    positions = torch.arange(12).remainder(5).expand(2, 12)

    def results():
        cache = KVCache(model.config)
        with torch.no_grad():
            parts = [model(part, cache=cache) for part in tokens.split(7, dim=1)]
            return [model(tokens, positions=positions), torch.cat(parts, dim=1)]

    expected = results()
    monkeypatch.setattr(rope, "LARGEST_TABLE", 0)
    for result, known in zip(results(), expected, strict=True):
        torch.testing.assert_close(result, known, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- scaling


def test_scaled_frequencies_are_those_of_the_reference_code_of_llama_3_1():
    """Its `apply_scaling`, written out: one frequency after another, by the length of its wave."""
    plain = Frequencies(64, 500_000.0).on(CPU).double()
    expected, kinds = [], set()
    for frequency in plain.tolist():
        wave = 2 * math.pi / frequency
        if wave < 256 / 4:
            expected.append(frequency)
            kinds.add("as it is")
        elif wave > 256 / 1:
            expected.append(frequency / 8)
            kinds.add("divided")
        else:
            smooth = (256 / wave - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
            kinds.add("between")
    assert kinds == {"as it is", "divided", "between"}
    found = Frequencies(64, 500_000.0, scaling=SCALING).on(CPU)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-6, atol=0)


def test_a_factor_of_1_changes_nothing():
    plain = Frequencies(64, 10_000.0).on(CPU)
    one = RopeScaling(factor=1.0, original_max_position_embeddings=256)
    torch.testing.assert_close(scaled(plain, one), plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("low", "high"), [(1e-300, 2e-300), (1.0, 1.0 + 1e-15), (1e-9, 1e30)])
def test_no_two_factors_give_a_frequency_that_is_not_a_number(low, high):
    bounds = {"low_freq_factor": low, "high_freq_factor": high}
    sharp = RopeScaling(factor=1e30, original_max_position_embeddings=2**53, **bounds)
    for half in (False, True):
        frequencies = Frequencies(64, 10_000.0, half, sharp).on(CPU)
        assert frequencies.isfinite().all()
        assert (frequencies >= 0).all()
