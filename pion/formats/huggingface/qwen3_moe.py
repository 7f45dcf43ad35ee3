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

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts, Heads
from pion.formats.huggingface import llama_like
from pion.formats.huggingface.llama_like import Fields, State
from pion.formats.huggingface.swiglu import QWEN3, Qwen3

# The dimension of one expert's matrix that is its width.
_WIDTH = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
# Every layer has experts, with renormalized weights.
_EXPERTS = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}


class Qwen3Moe(llama_like.Architecture):
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
    fields = llama_like.FIELDS | {"experts"}

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
        """Return the name of the router: the matrices of an expert are not as they are here."""
        return {"router": "gate.weight"}

    def stacked(self, config: ModelConfig) -> dict[str, list[str]]:
        """Return the names of the matrices that ours of the experts are stacks of."""
        assert config.experts is not None
        found = {}
        for layer in range(config.n_layers):
            ours, theirs = f"blocks.{layer}.feedforward", f"model.layers.{layer}.mlp"
            for name in _WIDTH:
                each = (f"{theirs}.experts.{e}.{name}.weight" for e in range(config.experts.n))
                found[f"{ours}.{name}"] = list(each)
        return found
