"""LoRA's settings: which projections of which model they reach, and what they refuse."""

import pytest

from pion.config.lora import Lora, target_shapes
from tests.support.tiny_config import tiny_config

SWIGLU = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPERTS = {"experts": {"n": 4, "d_shared": 16}}
PRIMITIVES = {
    "activation": "gelu",
    "primitives": {"n": 4, "rank": 4, "top_k": 2, "bands": [[0, 1]]},
}


def test_all_linear_is_every_projection_but_the_head():
    assert Lora().targets_of(tiny_config(tie_embeddings=False)) == SWIGLU


def test_a_model_of_two_matrices_has_no_gate():
    names = Lora().targets_of(tiny_config(activation="relu2"))
    assert names == tuple(name for name in SWIGLU if name != "gate_proj")


def test_targets_are_in_the_order_of_the_model():
    assert Lora(targets=("v_proj", "q_proj")).targets_of(tiny_config()) == ("q_proj", "v_proj")


@pytest.mark.parametrize("parts", [EXPERTS, PRIMITIVES])
def test_a_feed_forward_layer_without_projections_can_be_left_out(parts):
    attention = SWIGLU[:4]
    assert Lora(targets=attention).targets_of(tiny_config(**parts)) == attention


def test_the_shapes_are_those_of_the_decoders_projections():
    from pion.model.decoder import Decoder

    for changes in ({}, {"activation": "gelu"}, EXPERTS, PRIMITIVES, {"head_dim": 24}):
        state = Decoder(tiny_config(**changes)).state_dict()
        for name, shape in target_shapes(tiny_config(**changes)).items():
            part = "attention" if name in SWIGLU[:4] else "feedforward"
            assert state[f"blocks.0.{part}.{name}.weight"].shape == shape
