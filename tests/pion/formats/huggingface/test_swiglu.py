"""Which config of a Llama or a Qwen2 is read, and which models can't be one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads
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

CONFIGS = {
    "llama": tiny_config(heads={"qk_norm": False}),
    "qwen2": tiny_config(heads={"qk_norm": False, "qkv_bias": True}, imported=True),
}
FIELDS = {name: to_transformers(config, {})[0] for name, config in CONFIGS.items()}


def rows(cases: dict[str, list[Any]]) -> Iterator[Any]:
    """Return the cases of each architecture as parameters, with its name first."""
    for name, own in cases.items():
        for case in own:
            yield (name, *case) if isinstance(case, tuple) else (name, case)


def test_the_config_has_no_field_that_qwen2_does_not_have() -> None:
    assert not {"head_dim", "attention_bias"} & FIELDS["qwen2"].keys()
    assert FIELDS["qwen2"]["use_sliding_window"] is False


WITHOUT_EFFECT: dict[str, list[Any]] = {
    "llama": [
        {"pretraining_tp": 4},
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 1},
        {"layer_types": ["full_attention", "full_attention"]},
        {"layer_types": None},
        {"rope_scaling": None, "rope_theta": 10_000.0},
        {"partial_rotary_factor": 1.0},
        {"head_dim": None, "num_key_value_heads": 2},
    ],
    "qwen2": [
        {"attention_bias": False},  # Qwen2 has its biases whatever this says
        {"sliding_window": 32_768, "max_window_layers": 1},
        {"layer_types": ["full_attention", "full_attention"], "sliding_window": None},
        {"head_dim": 8},
        {"use_mrope": False},
    ],
}


@pytest.mark.parametrize(("name", "change"), rows(WITHOUT_EFFECT))
def test_a_field_without_effect_changes_nothing(name: str, change: dict[str, Any]) -> None:
    fields = FIELDS[name]
    assert config_from_transformers(fields | change) == config_from_transformers(fields)


LACKED: dict[str, list[Any]] = {
    "llama": [
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
    "qwen2": [
        ({"use_sliding_window": True}, "use_sliding_window is True; only False is supported"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types has 'sliding_attention'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'silu' is supported"),
    ],
}


@pytest.mark.parametrize(("name", "change", "message"), rows(LACKED))
def test_a_field_with_an_effect_that_we_lack_is_refused(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        config_from_transformers(FIELDS[name] | change)


MISFITS: dict[str, list[Any]] = {
    "llama": [
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
    "qwen2": [
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
}


@pytest.mark.parametrize(("name", "changes", "reason"), rows(MISFITS))
def test_what_the_architecture_can_not_compute_is_said(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    own = {"head_dim": None} if name == "llama" else {}
    config = ModelConfig.of(CONFIGS[name].to_dict() | own | changes)
    with pytest.raises(BadInput, match=f"can't be exported as {name}: {reason}"):
        architecture_of(config, name)
    assert architecture_of(config).model_type != name


def test_a_head_may_be_wider_than_its_share_of_d_model() -> None:
    config = tiny_config(heads=Heads(qk_norm=False), head_dim=12)
    assert architecture_of(config).name == "LlamaForCausalLM"
    assert config_from_transformers(to_transformers(config, {})[0]).head_dim == 12


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
