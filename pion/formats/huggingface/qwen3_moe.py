"""A decoder with experts, as transformers' Qwen3Moe.

Qwen3Moe has no shared experts. Since the weights of a token's experts add up to 1, each routed
expert can hold a copy of the shared experts:

    Σ_e w_e · expert_e(x) + shared(x) = Σ_e w_e · (expert_e(x) + shared(x))

and the sum of two SwiGLUs is one SwiGLU of their widths together. The file grows by these copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts, Heads
from pion.errors import BadInput
from pion.formats.huggingface import core
from pion.formats.huggingface.core import Fields, State
from pion.formats.huggingface.swiglu import QWEN3, Qwen3

# The dimension of one expert's matrix that is its width.
_WIDTH = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
# Every layer has experts, with renormalized weights.
_EXPERTS = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}


class Qwen3Moe(core.Architecture):
    """A decoder with experts."""

    name, model_type = "Qwen3MoeForCausalLM", "qwen3_moe"
    own: ClassVar[Fields] = {**QWEN3, **_EXPERTS, "output_router_logits": False}
    required: ClassVar[Fields] = {**Qwen3.required, **_EXPERTS}
    defaults: ClassVar[Fields] = {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
    }
    fields = core.FIELDS | {"experts"}

    def reasons(self, config: ModelConfig, heads: Heads) -> Iterable[tuple[bool, str]]:
        """Return what would keep Qwen3Moe from computing a model, and whether it does."""
        return ((config.experts is None, "Qwen3Moe needs experts"),)

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict of Qwen3Moe."""
        experts = config.experts
        assert experts is not None
        width = config.d_ff + experts.shared * experts.d_shared
        hf_config, hf_state = super().write(
            config, {name: state[name] for name in self.names(config)}
        )
        hf_config |= {
            "num_experts": experts.n,
            "num_experts_per_tok": experts.top_k,
            "moe_intermediate_size": width,
            "intermediate_size": width,
            "router_aux_loss_coef": experts.balance_weight,
        }
        for layer in range(config.n_layers):
            ours, theirs = f"blocks.{layer}.feedforward", f"model.layers.{layer}.mlp"
            hf_state[f"{theirs}.gate.weight"] = state[f"{ours}.router"]
            for name, dim in _WIDTH.items():
                shared = [state[f"{ours}.shared.{j}.{name}.weight"] for j in range(experts.shared)]
                for e, expert in enumerate(state[f"{ours}.{name}"]):
                    matrix = f"{theirs}.experts.{e}.{name}.weight"
                    hf_state[matrix] = torch.cat([expert, *shared], dim=dim)
        return hf_config, hf_state

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Return the config fields of a Qwen3Moe model as our settings.

        Raises BadInput for settings that our decoder does not support, and for a missing setting.
        """
        return super().read(
            {**hf_config, "mlp_only_layers": hf_config.get("mlp_only_layers") or []}
        )

    def read_feedforward(self, hf_config: Mapping[str, Any]) -> dict[str, Any]:
        """Return our settings of the experts. Raises KeyError for a missing one."""
        experts = Experts(
            n=hf_config["num_experts"],
            top_k=hf_config["num_experts_per_tok"],
            shared=0,
            balance_weight=hf_config["router_aux_loss_coef"],
        )
        return {"d_ff": hf_config["moe_intermediate_size"], "experts": experts}

    def feedforward_names(self, config: ModelConfig) -> Mapping[str, str]:
        """Return no names: the matrices of an expert are not as they are here."""
        return {}

    def rename(self, config: ModelConfig, hf_state: State) -> State:
        """Return the tensors of a Qwen3Moe model by our names.

        Raises BadInput for an unexpected or a missing tensor.
        """
        hf_state = dict(core.without_tied_head(config, hf_state))
        state: State = {}
        for ours, theirs in self._of_experts(config).items():
            router = ours.endswith(".router")
            state[ours] = _take(hf_state, theirs[0]) if router else _stack(hf_state, theirs)
        return state | core.renamed(self.names(config), hf_state)

    def sources(self, config: ModelConfig, ours: Iterable[str]) -> dict[str, list[str]]:
        """Return of which tensors of a Qwen3Moe model each of `ours` is made."""
        experts = self._of_experts(config)
        return experts | super().sources(config, (name for name in ours if name not in experts))

    def _of_experts(self, config: ModelConfig) -> dict[str, list[str]]:
        assert config.experts is not None
        found = {}
        for layer in range(config.n_layers):
            ours, theirs = f"blocks.{layer}.feedforward", f"model.layers.{layer}.mlp"
            found[f"{ours}.router"] = [f"{theirs}.gate.weight"]
            for name in _WIDTH:
                each = (f"{theirs}.experts.{e}.{name}.weight" for e in range(config.experts.n))
                found[f"{ours}.{name}"] = list(each)
        return found


def _stack(hf_state: State, names: Iterable[str]) -> Tensor:
    """Take the tensors of these names as one. Raises BadInput if their shapes differ."""
    tensors = {name: _take(hf_state, name) for name in names}
    first, like = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.shape != like.shape:
            raise BadInput(
                f"{name} has shape {tuple(tensor.shape)}, unlike {first}: {tuple(like.shape)}"
            )
    return torch.stack(list(tensors.values()))


def _take(hf_state: State, name: str) -> Tensor:
    if name not in hf_state:
        raise BadInput(f"the weights have no {name}")
    return hf_state.pop(name)
