"""Which config of a Llama is read, and which models can't be one."""

from __future__ import annotations

from typing import Any

import pytest

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads
from pion.errors import BadInput
from pion.formats.huggingface.architectures import (
    architecture_of,
    config_from_transformers,
    to_transformers,
)
from tests.support.tiny_config import tiny_config

CONFIG = tiny_config(heads={"qk_norm": False})
FIELDS, _ = to_transformers(CONFIG, {})


@pytest.mark.parametrize(
    "change",
    [
        {"pretraining_tp": 4},
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 1},
        {"layer_types": ["full_attention", "full_attention"]},
        {"layer_types": None},
        {"rope_scaling": None, "rope_theta": 10_000.0},
        {"partial_rotary_factor": 1.0},
        {"head_dim": None, "num_key_value_heads": 2},
    ],
)
def test_a_field_without_effect_changes_nothing(change: dict[str, Any]) -> None:
    assert config_from_transformers(FIELDS | change) == config_from_transformers(FIELDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True; only False is supported"),
        ({"mlp_bias": True}, "mlp_bias is True; only False is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types has 'sliding_attention'; only 'full_attention' is supported",
        ),
        ({"layer_types": "chunked_attention"}, "layer_types has 'chunked_attention'"),
        ({"layer_types": {"0": 1}}, "layer_types has {'0': 1}"),
        ({"num_key_value_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"rms_norm_eps": -1e-6}, "norm_eps is -1e-06; it must be a number above 0"),
    ],
)
def test_a_field_with_an_effect_that_we_lack_is_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        config_from_transformers(FIELDS | change)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": None}, "Llama does not normalize queries and keys"),
        (
            {"heads": {"qk_norm": False, "qkv_bias": True}},
            "Llama has no biases of queries, keys and values without one of the output",
        ),
        ({"heads": {"qk_norm": False, "rotary": "half"}}, "Llama does not support heads"),
        ({"n_heads": 6, "head_dim": 8}, "Llama needs a d_model that is a multiple of n_heads"),
        ({"activation": "relu2"}, "Llama does not support activation relu2"),
        ({"positions": "learned"}, "Llama does not support positions learned"),
        ({"softcap": 30.0}, "Llama does not support softcap 30.0"),
    ],
)
def test_what_llama_can_not_compute_is_said(changes: dict[str, Any], reason: str) -> None:
    config = ModelConfig.of(CONFIG.to_dict() | {"head_dim": None} | changes)
    with pytest.raises(BadInput, match=f"can't be exported as llama: {reason}"):
        architecture_of(config, "llama")
    assert architecture_of(config).model_type != "llama"


def test_a_head_may_be_wider_than_its_share_of_d_model() -> None:
    config = tiny_config(heads=Heads(qk_norm=False), head_dim=12)
    assert architecture_of(config).name == "LlamaForCausalLM"
    assert config_from_transformers(to_transformers(config, {})[0]).head_dim == 12
