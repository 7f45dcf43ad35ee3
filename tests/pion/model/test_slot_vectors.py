"""What slots cost: the arithmetic of their entries, and what they and the tokens see."""

from dataclasses import replace

import pytest

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.config.slots import Slots
from pion.model.params_and_flops import cost_of, flops_per_token
from tests.pion.model.test_params_and_flops import TINY, counted_products, stated_products


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_slots_take_the_arithmetic_of_tokens_without_a_head(lora):
    config = replace(TINY, slots=Slots(per_segment=2, segment=8, window=2))
    assert config.entries(64) == 64 + 16
    of_input = 0.0 if lora is None else 2 * 32 * (32 + 2 * 16 + 3 * lora.rank) * 80 / 64
    expected = stated_products(config, lora) - of_input
    assert counted_products(config, lora) == pytest.approx(expected, rel=1e-12)
    assert expected > stated_products(TINY, lora)


def test_the_arithmetic_of_a_lepton_in_full():
    """Lepton-small in rows of 2,048: 128 slots, and a head of 50,257 rows of 512 numbers."""
    small = ModelConfig.preset("lepton-small")
    head, blocks = 50_257 * 512, 12 * (4 * 512 * 512 + 3 * 512 * 1376)
    assert cost_of(small).macs_per_token == head + blocks
    attention = 2 * 12 * 512 * Slots(per_segment=4, segment=64, window=8).keys_seen(2048)
    macs = head + blocks * 2176 / 2048 + attention
    assert flops_per_token(small, 2048) == pytest.approx(6 * macs, rel=1e-12)
    # A token of full attention sees more keys than the window and all slots.
    assert macs < head + blocks + 2 * 12 * 512 * 1024
