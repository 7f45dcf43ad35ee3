"""The table of stock architectures of transformers.

Llama is from Touvron et al. 2023, "LLaMA: open and efficient foundation language models"; SmolLM2
and Llama 3.2 are Llamas too. Qwen2.5 has the architecture Qwen2. NO_IDS and the defaults are those
of transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pion.config.model_config import ModelConfig
from pion.formats.huggingface.architecture import Fields, State
from pion.formats.huggingface.attention_fields import Layers, Rotary
from pion.formats.huggingface.rows import GATED, Row, Value, words
from pion.model.decoder import Decoder

# Of feed-forward layers without a gate. The last name of a function is written.
TWO_MATRICES = words(
    "activation",
    {"relu2": "relu2", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
)


class Arcee(Row):
    """Arcee, which has layers that are mixtures of matrices multiplied out.

    So its folder has the sizes of a dense model. Read back, it is such a model, with biases.
    """

    def lacks(self, config: ModelConfig) -> list[str]:
        """Return the settings that are others when they are read back, or what is not dense."""
        part = config.feedforward_part
        unlike = None if part is None else part.unlike_dense
        return ([] if unlike is None else [unlike]) + super().lacks(config)

    def stored(self, config: ModelConfig) -> ModelConfig:
        """Return the settings of the dense model."""
        if not config.mixed:
            return config
        dense: dict[str, Any] = {config.feedforward: None, "feedforward_bias": True}
        return replace(config, **dense)

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict of the dense model."""
        if config.mixed:
            model = Decoder.from_state(config, state)
            for part in model.shared_parts():
                config, state = part.multiplied_out(config, state, model.blocks)
        return super().write(config, state)


NO_BIASES = {"attention_bias": False, "mlp_bias": False}
PLAIN = {"heads.qk_norm": False}
# The default ids of special tokens in these classes are not those of our tokenizers.
NO_BOS = {"bos_token_id": None}
NO_IDS = {**NO_BOS, "pad_token_id": None}
# What all Qwen3 models here have in common, with experts or without.
QWEN3: Fields = {"use_sliding_window": False, "attention_bias": False}

QWEN3_ROW = Row(
    name="Qwen3ForCausalLM",
    model_type="qwen3",
    required=QWEN3,
    defaults={"head_dim": 128, "num_key_value_heads": 32, "max_position_embeddings": 32_768},
)
# The first of these that fits is the class of a model that Pion trained from the beginning.
FIRST = (
    Arcee(
        name="ArceeForCausalLM",
        model_type="arcee",
        fixed=PLAIN,
        fields={"hidden_act": TWO_MATRICES, "mlp_bias": "feedforward_bias"},
        required={"attention_bias": False},
        written=NO_BOS,
        defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        whole_heads=True,
    ),
    Row(
        name="LlamaForCausalLM",
        model_type="llama",
        fixed=PLAIN,
        fields={
            "mlp_bias": "feedforward_bias",
            "attention_bias": "heads.qkv_bias heads.output_bias",
        },
        written=NO_BOS,
        defaults={"max_position_embeddings": 2048},
        whole_heads=True,
    ),
    Row(
        name="Qwen2ForCausalLM",
        model_type="qwen2",
        # The class has its biases whatever a field says, and no field for a width of heads.
        # transformers takes a width that is there, but other programs compute d_model / n_heads.
        fixed=PLAIN | {"heads.qkv_bias": True},
        written={"use_sliding_window": False},
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768},
        absent=("head_dim",),
        own_tokenizer=True,
    ),
)
# What the later ones have in common.
_IMPORT: Mapping[str, Any] = {"written": NO_IDS, "own_tokenizer": True}
_NO_WIDTH: Mapping[str, Any] = {**_IMPORT, "absent": ("head_dim",)}
# Norms of what layers add: after attention and the feed-forward layer, or of their input, too.
_AFTER = {
    "attention_out_norm": "post_attention_layernorm",
    "feedforward_out_norm": "post_feedforward_layernorm",
}
_BOTH = {**_AFTER, "feedforward_norm": "pre_feedforward_layernorm"}
_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_GATE_UP = ("feedforward.gate_proj", "feedforward.up_proj")


def _number(path: str) -> Value:
    """Return a number that the class always has: a model without it is no model of the class."""
    return Value(path, lambda value: value, lambda value: value)


def _power(path: str, exponent: float) -> Value:
    """Return a number whose power is the field; a whole number there stays whole."""

    def theirs(value: float | None) -> float | None:
        if value is None:
            return None
        power = value ** (1 / exponent)
        rounded = round(power)
        return rounded if math.isclose(rounded, power, rel_tol=1e-9) else power

    return Value(path, lambda value: float(value) ** exponent, theirs)


_GRANITE: Mapping[str, str | Value | None] = {
    "embedding_multiplier": "scales.embeddings",
    "residual_multiplier": "scales.residual",
    "attention_multiplier": _number("heads.scale"),
    "logits_scaling": _power("scales.logits", -1),
}
_MULTIPLIERS = dict.fromkeys(_GRANITE, 1.0)
_GEMMA = {"norm_offset": True}
_CAPPED: Mapping[str, str | Value | None] = {
    "query_pre_attn_scalar": _power("heads.scale", -0.5),
    "attn_logit_softcapping": "softcap",
    "final_logit_softcapping": "logit_cap",
    "hidden_act": None,
    "hidden_activation": GATED,
}
_GELU = "gelu_pytorch_tanh"
_QKV_BIAS = {"attention_bias": "heads.qkv_bias"}
_GLM: Mapping[str, Any] = {
    **_IMPORT,
    "fields": _QKV_BIAS,
    "rotary": Rotary(share=0.5),
    "fused": {"mlp.gate_up_proj": _GATE_UP},
    "defaults": {
        "attention_bias": True,
        "rms_norm_eps": 1.5625e-07,
        "head_dim": 128,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131_072,
    },
}
_PAIRS = {**PLAIN, "heads.rotary_pairs": True}
_LAYER_NORM = {"norm": "layer"}
_BIASES = {"heads.qkv_bias": True, "heads.output_bias": True}
_COHERE = _PAIRS | {"norm": "centred", "parallel": "one norm"}
_COHERE_DEFAULTS = {
    "logit_scale": 0.0625,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


def _eps(name: str) -> dict[str, str | None]:
    """Return the field that has the number in norms."""
    return {"rms_norm_eps": None, name: "norm_eps"}


def _parallel(way: str) -> Value:
    """Return whether feed-forward layers are next to attention, in the way of the class."""
    return Value("parallel", lambda value: way if value else "no", lambda ours: ours == way)


def _two_matrices(up: str, down: str) -> dict[str, str]:
    """Return the names of feed-forward layers of two matrices with biases."""
    names = {f"feedforward.{way}_proj": name for way, name in (("up", up), ("down", down))}
    return names | {"feedforward.up_bias": f"{up}.bias", "feedforward.down_bias": f"{down}.bias"}


_MISTRAL: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}
# Only a model that came as one of these, or that is asked for as one, is exported as one.
LATER = (
    Row(
        name="MistralForCausalLM",
        model_type="mistral",
        fixed=PLAIN,
        layers=Layers(windows="all"),
        defaults=_MISTRAL,
        **_IMPORT,
    ),
    Row(
        name="MinistralForCausalLM",
        model_type="ministral",
        fixed=PLAIN,
        layers=Layers(windows="types"),
        defaults=_MISTRAL,
        **_IMPORT,
    ),
    Row(
        name="Ministral3ForCausalLM",
        model_type="ministral3",
        fixed=PLAIN,
        layers=Layers(windows="all"),
        rotary=Rotary(kinds=("yarn",), theta=1e6, more={"llama_4_scaling_beta": "growth"}),
        defaults={
            "rms_norm_eps": 1e-5,
            "head_dim": 128,
            "num_key_value_heads": 8,
            "max_position_embeddings": 262_144,
        },
        **_IMPORT,
    ),
    Row(
        name="SmolLM3ForCausalLM",
        model_type="smollm3",
        fixed=PLAIN,
        required=NO_BIASES,
        layers=Layers(unrotated="no_rope_layers"),
        rotary=Rotary(theta=2e6),
        defaults={
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
        },
        **_NO_WIDTH,
    ),
    Row(
        name="Olmo2ForCausalLM",
        model_type="olmo2",
        fixed={"norms": "after", "heads.whole_norm": True},
        required={"attention_bias": False},
        names=_AFTER,
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
        **_NO_WIDTH,
    ),
    Row(
        name="Olmo3ForCausalLM",
        model_type="olmo3",
        fixed={"norms": "after", "heads.whole_norm": True},
        required={"attention_bias": False},
        names=_AFTER,
        layers=Layers(windows="types", full_every=4),
        rotary=Rotary(theta=5e5, window=("rope_theta", 5e5)),
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "sliding_window": 4096,
        },
        **_NO_WIDTH,
    ),
    Row(
        name="GraniteForCausalLM",
        model_type="granite",
        fixed=PLAIN,
        fields=_GRANITE,
        required=NO_BIASES,
        defaults={**_MULTIPLIERS, "max_position_embeddings": 2048},
        **_NO_WIDTH,
    ),
    Row(
        name="GraniteMoeHybridForCausalLM",
        model_type="granitemoehybrid",
        fixed=PLAIN,
        fields={**_GRANITE, "shared_intermediate_size": "d_ff"},
        required={
            "attention_bias": False,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
        },
        names={"feedforward.down_proj": "shared_mlp.output_linear"},
        fused={"shared_mlp.input_linear": _GATE_UP},
        layers=Layers(windows="types", recurrent=True),
        defaults={
            **_MULTIPLIERS,
            "num_local_experts": 8,
            "position_embedding_type": None,
            "max_position_embeddings": 2048,
        },
        absent=("head_dim",),
        # Layers that the model does not have must be possible, too.
        written={**NO_IDS, "mamba_n_heads": 1},
        own_tokenizer=True,
    ),
    Row(
        name="Phi3ForCausalLM",
        model_type="phi3",
        fixed=PLAIN,
        fused={
            "self_attn.qkv_proj": _QKV,
            "mlp.gate_up_proj": _GATE_UP,
        },
        layers=Layers(windows="all"),
        rotary=Rotary(kinds=("default", "longrope"), share=1.0),
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        **_NO_WIDTH,
    ),
    Row(
        name="Exaone4ForCausalLM",
        model_type="exaone4",
        fixed={"norms": "after"},
        names=_AFTER,
        layers=Layers(windows="types", full_every=4, unrotated="windows"),
        defaults={
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 32,
            "max_position_embeddings": 2048,
            "sliding_window": 4096,
        },
        **_NO_WIDTH,
    ),
    Row(
        name="GemmaForCausalLM",
        model_type="gemma",
        fixed=PLAIN | _GEMMA,
        required={"attention_bias": False},
        scaled=True,
        defaults={
            "hidden_act": _GELU,
            "head_dim": 256,
            "num_key_value_heads": 16,
            "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
        },
        **_IMPORT,
    ),
    Row(
        name="Gemma2ForCausalLM",
        model_type="gemma2",
        fixed=PLAIN | _GEMMA | {"norms": "both", "logit_cap_kind": "tanh"},
        fields=_CAPPED,
        required={"attention_bias": False},
        names=_BOTH,
        layers=Layers(windows="types", full_every=2),
        scaled=True,
        defaults={
            "hidden_activation": _GELU,
            "head_dim": 256,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 4096,
        },
        **_IMPORT,
    ),
    Row(
        name="Gemma3ForCausalLM",
        model_type="gemma3_text",
        fixed=_GEMMA | {"norms": "both", "logit_cap_kind": "tanh"},
        fields=_CAPPED,
        required={"attention_bias": False, "use_bidirectional_attention": False},
        names=_BOTH,
        layers=Layers(windows="types", full_every=6),
        rotary=Rotary(theta=1e6, window=("rope_local_base_freq", 1e4)),
        scaled=True,
        # Gemma 3 4B's config.json has no sizes that are those of the class.
        defaults={
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "hidden_activation": _GELU,
            "head_dim": 256,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "max_position_embeddings": 131_072,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window": 4096,
        },
        **_IMPORT,
    ),
    Row(name="GlmForCausalLM", model_type="glm", fixed=_PAIRS, **_GLM),
    Row(
        name="Glm4ForCausalLM",
        model_type="glm4",
        fixed=_PAIRS | {"norms": "both"},
        names={
            "attention_out_norm": "post_self_attn_layernorm",
            "feedforward_out_norm": "post_mlp_layernorm",
        },
        **_GLM,
    ),
    Row(
        name="SeedOssForCausalLM",
        model_type="seed_oss",
        fixed=PLAIN,
        fields={
            "attention_bias": "heads.qkv_bias",
            "attention_out_bias": "heads.output_bias",
            "mlp_bias": "feedforward_bias",
        },
        defaults={
            "attention_bias": True,
            "attention_out_bias": False,
            "head_dim": 128,
            "num_key_value_heads": 8,
            "max_position_embeddings": 524_288,
        },
        **_IMPORT,
    ),
    Row(
        name="Ernie4_5ForCausalLM",
        model_type="ernie4_5",
        fixed=_PAIRS,
        fields={"use_bias": "heads.qkv_bias heads.output_bias feedforward_bias"},
        rotary=Rotary(theta=5e5),
        defaults={
            "use_bias": False,
            "rms_norm_eps": 1e-5,
            "head_dim": 128,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "max_position_embeddings": 131_072,
        },
        **_IMPORT,
    ),
    Row(
        name="HeliumForCausalLM",
        model_type="helium",
        fixed=_PAIRS,
        required=NO_BIASES,
        rotary=Rotary(theta=1e5),
        defaults={
            "rms_norm_eps": 1e-8,
            "head_dim": 128,
            "num_key_value_heads": 20,
            "max_position_embeddings": 4096,
        },
        **_IMPORT,
    ),
    Row(
        name="GPTNeoXForCausalLM",
        model_type="gpt_neox",
        fixed=PLAIN
        | _LAYER_NORM
        | _BIASES
        | {"feedforward_bias": True, "n_kv_heads": None, "head_dim": None},
        fields={
            **_eps("layer_norm_eps"),
            "hidden_act": TWO_MATRICES,
            "num_key_value_heads": None,
            "head_dim": None,
            "use_parallel_residual": _parallel("two norms"),
        },
        required={"attention_bias": True},
        names={
            "embed": "gpt_neox.embed_in",
            "norm": "gpt_neox.final_layer_norm",
            "lm_head": "embed_out",
            "attention.o_proj": "attention.dense",
            **_two_matrices("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        },
        fused={"attention.query_key_value": _QKV},
        by_heads=True,
        blocks="gpt_neox.layers",
        rotary=Rotary(
            share=0.25,
            names={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
        ),
        defaults={
            "hidden_act": "gelu",
            "attention_bias": True,
            "use_parallel_residual": True,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
        },
        **_IMPORT,
    ),
    Row(
        name="StableLmForCausalLM",
        model_type="stablelm",
        fixed=PLAIN | _LAYER_NORM,
        fields={
            **_eps("layer_norm_eps"),
            "use_qkv_bias": "heads.qkv_bias",
            "use_parallel_residual": _parallel("one norm"),
        },
        required={"qk_layernorm": False},
        rotary=Rotary(share=0.25),
        defaults={
            "use_qkv_bias": False,
            "use_parallel_residual": False,
            "layer_norm_eps": 1e-5,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
        },
        **_NO_WIDTH,
    ),
    Row(
        name="Starcoder2ForCausalLM",
        model_type="starcoder2",
        fixed=PLAIN | _LAYER_NORM | _BIASES | {"feedforward_bias": True},
        fields={**_eps("norm_epsilon"), "hidden_act": TWO_MATRICES},
        required={"use_bias": True},
        names=_two_matrices("mlp.c_fc", "mlp.c_proj"),
        layers=Layers(windows="all"),
        defaults={
            "hidden_act": _GELU,
            "norm_epsilon": 1e-5,
            "initializer_range": 0.018042,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "max_position_embeddings": 4096,
        },
        **_NO_WIDTH,
    ),
    Row(
        name="NemotronForCausalLM",
        model_type="nemotron",
        fixed=PLAIN | _LAYER_NORM | {"norm_offset": True},
        fields={**_eps("norm_eps"), "hidden_act": TWO_MATRICES},
        required=NO_BIASES,
        rotary=Rotary(share=0.5),
        defaults={
            "hidden_act": "relu2",
            "norm_eps": 1e-5,
            "initializer_range": 0.0134,
            "max_position_embeddings": 4096,
        },
        **_IMPORT,
    ),
    Row(
        name="CohereForCausalLM",
        model_type="cohere",
        fixed=_COHERE,
        fields={**_eps("layer_norm_eps"), "logit_scale": "scales.logits"},
        required={"attention_bias": False, "use_qk_norm": False},
        rotary=Rotary(theta=5e5),
        defaults=_COHERE_DEFAULTS,
        **_NO_WIDTH,
    ),
    Row(
        name="Cohere2ForCausalLM",
        model_type="cohere2",
        fixed=_COHERE,
        fields={**_eps("layer_norm_eps"), "logit_scale": "scales.logits"},
        required={"attention_bias": False},
        layers=Layers(windows="types", full_every=4, unrotated="windows"),
        defaults={**_COHERE_DEFAULTS, "sliding_window": 4096},
        **_NO_WIDTH,
    ),
    Row(
        name="OlmoForCausalLM",
        model_type="olmo",
        fixed=PLAIN | {"norm": "centred", "norm_gain": False, "norm_eps": 1e-5},
        fields={"rms_norm_eps": None},
        required={"attention_bias": False, "clip_qkv": None},
        defaults={"max_position_embeddings": 2048},
        **_NO_WIDTH,
    ),
)
