"""A decoder with experts, as transformers' Qwen3Moe.

Qwen3Moe has no shared experts. Since the weights of a token's experts add up to 1, each routed
expert can hold a copy of the shared experts:

    Σ_e w_e · expert_e(x) + shared(x) = Σ_e w_e · (expert_e(x) + shared(x))

and the sum of two SwiGLUs is one SwiGLU of their widths together. The file grows by these copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts
from pion.errors import BadInput
from pion.formats.huggingface import core
from pion.formats.huggingface.core import State
from pion.formats.huggingface.qwen3 import COMMON, REQUIRED
from pion.later_fields import shown

ARCHITECTURE, MODEL_TYPE = "Qwen3MoeForCausalLM", "qwen3_moe"
DEFAULTS = {"num_key_value_heads": 4, "max_position_embeddings": 32_768}
# The dimension of one expert's matrix that is its width.
_WIDTH = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}


def misfit(config: ModelConfig) -> str | None:
    """Return why stock Qwen3Moe can't compute the model; None if it can."""
    if config.experts is None:
        return "Qwen3Moe needs experts"
    return core.lacks("Qwen3Moe", config, core.FIELDS | {"experts"})


def to_qwen3_moe(config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
    """Return the config fields and the state dict of Qwen3Moe."""
    experts = config.experts
    assert experts is not None
    width = config.d_ff + experts.shared * experts.d_shared
    hf_config = {
        **core.settings(config),
        **COMMON,
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "num_experts": experts.n,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": width,
        "intermediate_size": width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "router_aux_loss_coef": experts.balance_weight,
    }
    names = core.names(config)
    hf_state = {theirs: state[name] for name, theirs in names.items()}
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.feedforward", f"model.layers.{layer}.mlp"
        hf_state[f"{theirs}.gate.weight"] = state[f"{ours}.router"]
        for name, dim in _WIDTH.items():
            shared = [state[f"{ours}.shared.{j}.{name}.weight"] for j in range(experts.shared)]
            for e, expert in enumerate(state[f"{ours}.{name}"]):
                folded = torch.cat([expert, *shared], dim=dim)
                hf_state[f"{theirs}.experts.{e}.{name}.weight"] = folded
    return hf_config, hf_state


def read_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return the config fields of a Qwen3Moe model as our settings.

    Every layer must have experts, with renormalized weights. Raises BadInput for other settings and
    for a missing setting.
    """
    hf_config = core.with_defaults(hf_config, DEFAULTS)
    for what, value, expected in (
        ("norm_topk_prob", hf_config.get("norm_topk_prob", False), True),
        ("decoder_sparse_step", hf_config.get("decoder_sparse_step", 1), 1),
        ("mlp_only_layers", hf_config.get("mlp_only_layers") or [], []),
    ):
        if value != expected:
            text = shown(value)
            raise BadInput(f"config.json: {what} is {text}; only {expected!r} is supported")

    def feedforward() -> dict[str, Any]:
        n, top_k = hf_config["num_experts"], hf_config["num_experts_per_tok"]
        weight = hf_config.get("router_aux_loss_coef", 0.001)
        experts = Experts(n=n, top_k=top_k, shared=0, balance_weight=weight)
        return {"d_ff": hf_config["moe_intermediate_size"], "experts": experts}

    core.require(hf_config, REQUIRED)
    return core.read(hf_config, feedforward)


def rename(config: ModelConfig, hf_state: State) -> State:
    """Return the tensors of a Qwen3Moe model by our names.

    Raises BadInput for an unexpected or a missing tensor.
    """
    hf_state = dict(core.without_tied_head(config, hf_state))
    assert config.experts is not None
    state: State = {}
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.feedforward", f"model.layers.{layer}.mlp"
        state[f"{ours}.router"] = _take(hf_state, f"{theirs}.gate.weight")
        for name in _WIDTH:
            each = (f"{theirs}.experts.{e}.{name}.weight" for e in range(config.experts.n))
            state[f"{ours}.{name}"] = _stack(hf_state, each)
    return state | core.renamed(core.names(config), hf_state)


def _stack(hf_state: State, names: Iterable[str]) -> Tensor:
    """Take the tensors of these names as one. Raises BadInput if their shapes differ."""
    tensors: State = {}
    for name in names:
        tensors[name] = tensor = _take(hf_state, name)
        first, like = next(iter(tensors.items()))
        if tensor.shape != like.shape:
            raise BadInput(
                f"{name} has shape {tuple(tensor.shape)}, unlike {first}: {tuple(like.shape)}"
            )
    return torch.stack(list(tensors.values()))


def _take(hf_state: State, name: str) -> Tensor:
    if name not in hf_state:
        raise BadInput(f"the weights have no {name}")
    return hf_state.pop(name)
