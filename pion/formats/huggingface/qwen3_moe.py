"""A decoder with experts, as transformers' Qwen3Moe.

Qwen3Moe has no shared experts. Since the weights of a token's experts add up to 1, each routed
expert can hold a copy of the shared experts:

    Σ_e w_e · expert_e(x) + shared(x) = Σ_e w_e · (expert_e(x) + shared(x))

and the sum of two SwiGLUs is one SwiGLU of their widths together. The file grows by these copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts
from pion.formats.huggingface.architecture import State
from pion.formats.huggingface.rows import Row
from pion.formats.huggingface.stock_rows import QWEN3, QWEN3_ROW
from pion.formats.model_tensors import Rows

# The dimension of one expert's matrix that is its width.
_WIDTH = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
# Every layer has experts, with renormalized weights.
_EXPERTS = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}


class Qwen3Moe(Row):
    """A decoder with experts."""

    def lacks(self, config: ModelConfig) -> list[str]:
        """Return the settings of the model that are others when they are read back."""
        if config.experts is None:
            return ["a model without experts", *QWEN3_ROW.lacks(config)]
        return super().lacks(config)

    def stored(self, config: ModelConfig) -> ModelConfig:
        """Return the settings without shared experts, and with the losses of an import."""
        experts = config.experts
        assert experts is not None
        weight = experts.balance_weight
        routed = Experts(n=experts.n, top_k=experts.top_k, shared=0, balance_weight=weight)
        return replace(config, experts=routed)

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict of Qwen3Moe."""
        experts = config.experts
        assert experts is not None
        inside = {name for name in state if ".feedforward." in name and not name.endswith("router")}
        hf_config, hf_state = super().write(
            config, {name: tensor for name, tensor in state.items() if name not in inside}
        )
        width = config.d_ff + experts.shared * experts.d_shared
        hf_config |= dict.fromkeys(("moe_intermediate_size", "intermediate_size"), width)
        for layer in range(config.n_layers):
            ours, theirs = f"blocks.{layer}.feedforward", f"model.layers.{layer}.mlp"
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
        changed = {"mlp_only_layers": hf_config.get("mlp_only_layers") or []}
        if "num_local_experts" in hf_config:  # transformers 5 writes this name
            changed["num_experts"] = hf_config["num_local_experts"]
        return super().read({**hf_config, **changed})

    def sources(self, config: ModelConfig, ours: Iterable[str]) -> dict[str, list[Rows]]:
        """Return of which rows of its tensors each of `ours` is made: experts are stacks."""
        sources = super().sources(config, ours)
        assert config.experts is not None
        for layer in range(config.n_layers):
            for name in _WIDTH:
                experts = f"model.layers.{layer}.mlp.experts"
                sources[f"blocks.{layer}.feedforward.{name}"] = [
                    Rows(f"{experts}.{e}.{name}.weight") for e in range(config.experts.n)
                ]
        return sources


QWEN3_MOE = Qwen3Moe(
    name="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    fixed={"experts.shared": 0},
    fields={
        "moe_intermediate_size": "d_ff",
        "num_experts": "experts.n",
        "num_experts_per_tok": "experts.top_k",
        "router_aux_loss_coef": "experts.balance_weight",
    },
    required={**QWEN3, **_EXPERTS},
    written={"output_router_logits": False},
    defaults={
        "intermediate_size": 6144,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
    },
)
