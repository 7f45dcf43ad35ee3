"""Rotations: from the table of a context, and computed for the tokens that are there."""

from __future__ import annotations

import pytest
import torch

from pion.model import decoder as decoder_module
from pion.model.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.rope import Frequencies, rotary_table, rotation_at
from tests.support.tiny_config import tiny_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("half", [False, True])
def test_a_rotation_is_the_same_with_and_without_a_table(half: bool) -> None:
    frequencies = Frequencies(64, 10_000.0, half)
    cos, sin = rotary_table(3000, frequencies, CPU)
    positions = torch.tensor([[0, 1, 2], [7, 500, 2999]])
    here = rotation_at(positions, frequencies)
    torch.testing.assert_close(here[0][:, :, 0], cos[positions], rtol=0, atol=1e-6)
    torch.testing.assert_close(here[1][:, :, 0], sin[positions], rtol=0, atol=1e-6)


def test_a_model_of_a_long_context_computes_what_one_with_a_table_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = Decoder(tiny_config(init_std=0.3)).eval()
    tokens = torch.randint(0, 64, (2, 12))
    positions = torch.arange(12).remainder(5).expand(2, 12)

    def results() -> list[torch.Tensor]:
        cache = KVCache(model.config)
        with torch.no_grad():
            parts = [model(part, cache=cache) for part in tokens.split(7, dim=1)]
            return [model(tokens, positions=positions), torch.cat(parts, dim=1)]

    expected = results()
    monkeypatch.setattr(decoder_module, "LARGEST_TABLE", 0)
    for result, known in zip(results(), expected, strict=True):
        torch.testing.assert_close(result, known, rtol=0, atol=1e-5)
