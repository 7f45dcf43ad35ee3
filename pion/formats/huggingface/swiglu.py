"""Decoders whose feed-forward layers are SwiGLU, as transformers' Qwen3, Llama and Qwen2.

Qwen3 is from Qwen Team 2025, "Qwen3 technical report". Llama is from Touvron et al. 2023, "LLaMA:
open and efficient foundation language models"; SmolLM2 and Llama 3.2 are Llamas too. Qwen2 is from
Qwen Team 2024, "Qwen2 technical report"; Qwen2.5 has the same architecture.

transformers 5 reads a tokenizer.json next to a Qwen2 with Qwen's normalizer and Qwen's rule for
splitting words, whatever the file says (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS in
tokenization_auto.py). So only an imported model, whose tokenizer is Qwen's, is exported as a Qwen2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads
from pion.formats.huggingface.llama_like import Architecture, Fields, State

# What all Qwen3 models here have in common, with experts or without.
QWEN3 = {"hidden_act": "silu", "use_sliding_window": False}


class Qwen3(Architecture):
    """A decoder without parts."""

    name, model_type = "Qwen3ForCausalLM", "qwen3"
    own: ClassVar[Fields] = QWEN3
    required: ClassVar[Fields] = {**QWEN3, "attention_bias": False}
    defaults: ClassVar[Fields] = {
        "head_dim": 128,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
    }


class Llama(Architecture):
    """A decoder without norms and biases of queries and keys."""

    name, model_type = "LlamaForCausalLM", "llama"
    heads = Heads(qk_norm=False)
    own: ClassVar[Fields] = {
        "hidden_act": "silu",
        "mlp_bias": False,
        "bos_token_id": None,  # else Llama's own, which our tokenizers do not have
    }
    required: ClassVar[Fields] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    defaults: ClassVar[Fields] = {"max_position_embeddings": 2048}

    def reasons(self, config: ModelConfig, heads: Heads) -> Iterable[tuple[bool, str]]:
        """Return what would keep Llama from computing a model, and whether it does."""
        return (
            (heads.qk_norm, "Llama does not normalize queries and keys"),
            (
                heads.qkv_bias,
                "Llama has no biases of queries, keys and values without one of the output",
            ),
            (
                config.d_model % config.n_heads != 0,
                "Llama needs a d_model that is a multiple of n_heads",
            ),
        )


class Qwen2(Architecture):
    """A decoder with biases on queries, keys and values."""

    name, model_type = "Qwen2ForCausalLM", "qwen2"
    heads = Heads(qk_norm=False, qkv_bias=True)
    own: ClassVar[Fields] = {"hidden_act": "silu", "use_sliding_window": False}
    required: ClassVar[Fields] = {"hidden_act": "silu"}
    defaults: ClassVar[Fields] = {"num_key_value_heads": 32, "max_position_embeddings": 32_768}

    def reasons(self, config: ModelConfig, heads: Heads) -> Iterable[tuple[bool, str]]:
        """Return what would keep Qwen2 from computing a model, and whether it does."""
        return (
            (heads.qk_norm, "Qwen2 does not normalize queries and keys"),
            (not heads.qkv_bias, "Qwen2 needs biases of queries, keys and values"),
            (
                config.head_dim * config.n_heads != config.d_model,
                "Qwen2 needs a head_dim of d_model / n_heads",
            ),
            (
                not config.imported,
                "transformers splits the text of each Qwen2 as Qwen's own tokenizer does",
            ),
        )

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict of Qwen2."""
        hf_config, hf_state = super().write(config, state)
        # Qwen2 has its biases whatever a field says, and no such field as a width of heads.
        # transformers takes a width that is there, but other programs compute d_model / n_heads.
        del hf_config["attention_bias"], hf_config["head_dim"]
        return hf_config, hf_state
