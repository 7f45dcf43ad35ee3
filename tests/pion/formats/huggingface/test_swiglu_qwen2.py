"""Which config of a Qwen2 is read, and which models can't be one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface.architectures import (
    architecture_of,
    config_from_transformers,
    from_transformers,
    to_transformers,
)
from pion.model.decoder import Decoder
from tests.support.stock_models import apart, stock_model, tokens
from tests.support.tiny_config import tiny_config

CONFIG = tiny_config(heads={"qk_norm": False, "qkv_bias": True}, imported=True)
FIELDS, _ = to_transformers(CONFIG, {})


def test_the_config_has_no_field_that_qwen2_does_not_have() -> None:
    assert not {"head_dim", "attention_bias"} & FIELDS.keys()
    assert FIELDS["use_sliding_window"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": False},  # Qwen2 has its biases whatever this says
        {"sliding_window": 32_768, "max_window_layers": 1},
        {"layer_types": ["full_attention", "full_attention"], "sliding_window": None},
        {"head_dim": 8},
        {"use_mrope": False},
    ],
)
def test_a_field_without_effect_changes_nothing(change: dict[str, Any]) -> None:
    assert config_from_transformers(FIELDS | change) == config_from_transformers(FIELDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is True; only False is supported"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types has 'sliding_attention'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'silu' is supported"),
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
        ({"heads": None}, "Qwen2 does not normalize queries and keys"),
        ({"heads": {"qk_norm": False}}, "Qwen2 needs biases of queries, keys and values"),
        ({"head_dim": 12}, "Qwen2 needs a head_dim of d_model / n_heads"),
        (
            {"heads": {"qk_norm": False, "qkv_bias": True, "scale": 0.5}},
            "Qwen2 does not support heads",
        ),
        ({"logit_cap": 15.0}, "Qwen2 does not support logit_cap 15.0"),
        ({"imported": False}, "transformers splits the text of each Qwen2 as Qwen's own tokenizer"),
    ],
)
def test_what_qwen2_can_not_compute_is_said(changes: dict[str, Any], reason: str) -> None:
    config = ModelConfig.of(CONFIG.to_dict() | changes)
    with pytest.raises(BadInput, match=f"can't be exported as qwen2: {reason}"):
        architecture_of(config, "qwen2")
    assert architecture_of(config).model_type != "qwen2"


def test_a_width_of_heads_that_only_transformers_takes_is_read() -> None:
    theirs = stock_model("Qwen2.5", head_dim=12)
    config, state = from_transformers(theirs.config.to_dict(), theirs.state_dict())
    assert config.head_dim == 12
    assert apart(Decoder.from_state(config, state), theirs, tokens(50)) <= 1e-4
    assert not architecture_of(config).stock


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_a_missing_bias_is_named(part: str) -> None:
    theirs = stock_model("Qwen2.5")
    state = dict(theirs.state_dict())
    del state[f"model.layers.1.self_attn.{part}.bias"]
    config, ours = from_transformers(theirs.config.to_dict(), state)
    with pytest.raises(BadInput, match=rf"no blocks\.1\.attention\.{part}\.bias of shape"):
        Decoder.from_state(config, ours)


def test_a_bias_of_the_output_is_refused() -> None:
    theirs = stock_model("Qwen2.5")
    name = "model.layers.0.self_attn.o_proj.bias"
    with pytest.raises(BadInput, match=f"unexpected tensor {name}"):
        from_transformers(theirs.config.to_dict(), theirs.state_dict() | {name: torch.zeros(48)})
