"""Weights that are drawn later, module by module, have the bits of those drawn at once."""

import pytest
import torch

from pion.model.decoder import Decoder
from pion.model.lazy_weights import lazily_drawn
from tests.families.families import each_family
from tests.support.tiny_config import tiny_config


def whole(drawn, name):
    shape, _ = drawn.layout()[name]
    return drawn.part(name, 0, shape.numel()).view(shape)


@each_family
def test_the_weights_have_the_bits_of_a_decoder_that_was_drawn_at_once(family):
    torch.manual_seed(3)
    expected = Decoder(family.config()).state_dict()
    torch.manual_seed(3)
    decoder, drawn = lazily_drawn(family.config())
    torch.manual_seed(4)  # nobody else's numbers count
    later = drawn.layout()
    assert "embed.weight" in later
    for name, tensor in decoder.state_dict().items():
        assert tensor.is_meta == (name in later), name
        found = whole(drawn, name) if name in later else tensor
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("init", ["normal", "zero_outputs", "uniform"])
def test_the_weights_may_be_read_in_any_order_and_in_parts(init):
    config = tiny_config(init=init)
    torch.manual_seed(3)
    expected = Decoder(config).state_dict()
    torch.manual_seed(3)
    _, drawn = lazily_drawn(config)
    names = list(drawn.layout())
    for name in [*reversed(names), *names]:
        assert torch.equal(drawn.part(name, 5, 9), expected[name].view(-1)[5:9]), name


def test_drawing_takes_no_random_numbers_of_others():
    _, drawn = lazily_drawn(tiny_config())
    before = torch.get_rng_state()
    whole(drawn, "blocks.1.feedforward.up_proj.weight")
    assert torch.equal(torch.get_rng_state(), before)
