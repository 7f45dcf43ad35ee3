"""LoRA's settings: which projections of which model they reach, and what they refuse."""

import math

import pytest

from pion.config.lora import Lora, target_shapes
from pion.errors import BadInput
from tests.support.tiny_config import tiny_config

SWIGLU = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPERTS = {"experts": {"n": 4, "d_shared": 16}}
PRIMITIVES = {
    "activation": "gelu",
    "primitives": {"n": 4, "rank": 4, "top_k": 2, "bands": [[0, 1]]},
}


def refusal(lora, **model):
    with pytest.raises(BadInput) as refused:
        Lora(**lora).targets_of(tiny_config(**model))
    return str(refused.value)


def test_all_linear_is_every_projection_but_the_head():
    assert Lora().targets_of(tiny_config(tie_embeddings=False)) == SWIGLU


def test_a_model_of_two_matrices_has_no_gate():
    names = Lora().targets_of(tiny_config(activation="relu2"))
    assert names == tuple(name for name in SWIGLU if name != "gate_proj")


def test_targets_are_in_the_order_of_the_model():
    assert Lora(targets=("v_proj", "q_proj")).targets_of(tiny_config()) == ("q_proj", "v_proj")


@pytest.mark.parametrize(("parts", "name"), [(EXPERTS, "experts"), (PRIMITIVES, "primitives")])
def test_a_feed_forward_layer_without_projections_can_be_left_out_but_not_adapted(parts, name):
    attention = SWIGLU[:4]
    assert Lora(targets=attention).targets_of(tiny_config(**parts)) == attention
    assert f"targets: all-linear can't reach the {name}" in refusal({}, **parts)
    told = refusal({"targets": ("up_proj",)}, **parts)
    assert "no projection 'up_proj'" in told
    assert "it has q_proj, k_proj, v_proj, o_proj" in told


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ({"rank": 0}, "rank: 0 must be a whole number of at least 1"),
        ({"rank": True}, "rank: True must be a whole number"),
        ({"rank": 17}, "rank: 17 is above 16, the smaller side of k_proj"),
        ({"alpha": math.inf}, "alpha: inf must be a finite number above 0"),
        ({"alpha": math.nan}, "alpha: nan must be"),
        ({"alpha": 0}, "alpha: 0 must be"),
        ({"targets": ()}, "targets: () must be all-linear or a list of names"),
        ({"targets": "q_proj"}, "targets: 'q_proj' must be all-linear or a list"),
        ({"targets": ("q_proj", "q_proj")}, "names a projection twice"),
        ({"targets": ("lm_head",)}, "no projection 'lm_head'"),
        ({"targets": ("q_prog",)}, "did you mean 'q_proj'?"),
        ({"base_dtype": "float16"}, "base_dtype: 'float16' must be bfloat16, or left out"),
    ],
)
def test_a_bad_value_is_refused_with_its_field(lora, told):
    assert told in refusal(lora)


def test_the_shapes_are_those_of_the_decoders_projections():
    from pion.model.decoder import Decoder

    for changes in ({}, {"activation": "gelu"}, EXPERTS, PRIMITIVES, {"head_dim": 24}):
        state = Decoder(tiny_config(**changes)).state_dict()
        for name, shape in target_shapes(tiny_config(**changes)).items():
            part = "attention" if name in SWIGLU[:4] else "feedforward"
            assert state[f"blocks.0.{part}.{name}.weight"].shape == shape
