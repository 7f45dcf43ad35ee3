"""Tiny models of transformers' own classes, whose weights, biases and gains are all random."""

import copy
import json

import pytest
import torch

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e5,
    "factor": 8.0,
    "original_max_position_embeddings": 256,
}
GROWTH = {"llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
_TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
}
_NO_KEYS = {name: value for name, value in _TINY.items() if name != "num_key_value_heads"}
_GEMMA = _TINY | {
    "pad_token_id": None,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 60,
    "layer_types": [SLIDING, FULL],
}
# By the name of the model whose settings these are, the class and its settings. As in the published
# models: three of SmolLM2's heads share a key, a head of Qwen3 is wider than d_model / n_heads.
STOCK = {
    "SmolLM2": (
        "Llama",
        _TINY | {"rope_theta": 1e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    ),
    "Llama 3.2": (
        "Llama",
        _TINY
        | {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rms_norm_eps": 1e-5, "head_dim": 16}
        | {"tie_word_embeddings": True},
    ),
    "Qwen2.5": ("Qwen2", _TINY | {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "Qwen2, untied": ("Qwen2", _TINY | {"rope_parameters": LLAMA3 | {"rope_theta": 1e6}}),
    "Qwen3": ("Qwen3", _TINY | {"rope_theta": 1e6, "head_dim": 16, "tie_word_embeddings": True}),
    "Qwen3, scaled": (
        "Qwen3",
        _TINY | {"rope_theta": 1e4, "rope_scaling": LLAMA3, "head_dim": 10, "rms_norm_eps": 1e-5},
    ),
    "Mistral": ("Mistral", _TINY | {"sliding_window": None, "head_dim": 16}),
    "Mistral, windows": ("Mistral", _TINY | {"sliding_window": 60, "head_dim": 16}),
    # A window of the whole context hides nothing.
    "Ministral": (
        "Ministral",
        _TINY
        | {"sliding_window": 2048, "layer_types": [FULL] * 2}
        | {"rope_theta": 1e6, "head_dim": 16},
    ),
    "Ministral, windows": (
        "Ministral",
        _TINY | {"sliding_window": 60, "layer_types": [FULL, SLIDING], "head_dim": 16},
    ),
    "Ministral 3": (
        "Ministral3",
        _TINY | {"pad_token_id": None, "head_dim": 16, "rope_parameters": YARN | GROWTH},
    ),
    "Llama, biases": ("Llama", _TINY | {"attention_bias": True, "mlp_bias": True}),
    "Llama, YaRN": (
        "Llama",
        _TINY
        | {
            "rope_parameters": YARN
            | {"beta_fast": 3.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.3}
        },
    ),
    "SmolLM3": (
        "SmolLM3",
        _TINY | {"pad_token_id": None, "no_rope_layers": [1, 0], "rope_parameters": YARN},
    ),
    "OLMo 2": ("Olmo2", _TINY | {"pad_token_id": None, "rope_theta": 5e5}),
    "OLMo 3": (
        "Olmo3",
        _TINY
        | {"pad_token_id": None, "sliding_window": 60, "layer_types": [SLIDING, FULL]}
        | {"rope_scaling": {n: v for n, v in YARN.items() if n != "rope_theta"}},
    ),
    "Granite": (
        "Granite",
        _TINY
        | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0}
        | {"attention_multiplier": 0.3},
    ),
    "Granite 4": (
        "GraniteMoeHybrid",
        _TINY
        | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0}
        | {"attention_multiplier": 0.3, "num_local_experts": 0, "layer_types": [FULL] * 2}
        | {"position_embedding_type": "rope", "shared_intermediate_size": 80, "mamba_n_heads": 1},
    ),
    "Phi-3": ("Phi3", _TINY | {"pad_token_id": None}),
    "Phi-4-mini": (
        "Phi3",
        _TINY
        | {"pad_token_id": None, "num_attention_heads": 3, "num_key_value_heads": 1}
        | {"partial_rotary_factor": 0.75, "sliding_window": 60}
        | {"original_max_position_embeddings": 2048, "max_position_embeddings": 4096}
        | {
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": [1.0, 1.1, 1.3, 1.8, 2.5, 3.0],
                "long_factor": [2.0, 2.5, 4.0, 8.0, 9.0, 11.0],
            }
        },
    ),
    "EXAONE 4": (
        "Exaone4",
        _TINY | {"sliding_window": 60, "layer_types": [SLIDING, FULL], "rope_theta": 1e6},
    ),
    "EXAONE 4, no windows": (
        "Exaone4",
        _TINY | {"sliding_window": None, "layer_types": [FULL] * 2, "rope_scaling": LLAMA3},
    ),
    "Gemma": ("Gemma", _TINY | {"pad_token_id": None, "head_dim": 16, "num_key_value_heads": 1}),
    "Gemma 2": (
        "Gemma2",
        _GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    ),
    "Gemma 3": (
        "Gemma3",
        _GEMMA
        | {
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 1e3},
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
            }
        },
    ),
    "GLM": ("Glm", _TINY | {"pad_token_id": None, "head_dim": 16, "attention_bias": True}),
    "GLM-4": ("Glm4", _TINY | {"pad_token_id": None, "head_dim": 16, "attention_bias": False}),
    "Seed-OSS": (
        "SeedOss",
        _TINY | {"head_dim": 16, "pad_token_id": None, "attention_dropout": 0.0},
    ),
    "Seed-OSS, biases": (
        "SeedOss",
        _TINY
        | {"head_dim": 16, "pad_token_id": None, "attention_dropout": 0.0}
        | {"attention_out_bias": True, "mlp_bias": True},
    ),
    "Ernie 4.5": ("Ernie4_5", _TINY | {"pad_token_id": None, "head_dim": 16, "use_bias": True}),
    "Helium": ("Helium", _TINY | {"pad_token_id": None, "head_dim": 8}),
    "Pythia": ("GPTNeoX", _NO_KEYS | {"rotary_pct": 0.25}),
    "GPT-NeoX, not parallel": (
        "GPTNeoX",
        _NO_KEYS
        | {
            "use_parallel_residual": False,
            "hidden_act": "gelu_pytorch_tanh",
            "num_attention_heads": 3,
        },
    ),
    "StableLM": ("StableLm", _TINY | {"use_qkv_bias": True, "tie_word_embeddings": True}),
    "StableLM, parallel": ("StableLm", _TINY | {"use_parallel_residual": True}),
    "StarCoder 2": ("Starcoder2", _TINY | {"sliding_window": 60}),
    "Nemotron": ("Nemotron", _TINY | {"head_dim": 16}),
    "Cohere": ("Cohere", _TINY | {"pad_token_id": None, "logit_scale": 0.25}),
    "Cohere 2": (
        "Cohere2",
        _TINY | {"pad_token_id": None, "sliding_window": 60, "layer_types": [SLIDING, FULL]},
    ),
    "OLMo": ("Olmo", _TINY | {"pad_token_id": None}),
    "Arcee": ("Arcee", _TINY | {"rope_parameters": YARN}),
}
# These have each field that differs from Llama's. They are tried in each run, others in the soak.
OFTEN = (
    *("Llama 3.2", "Qwen2.5", "Qwen3", "Gemma 2", "Gemma 3", "Phi-4-mini", "SmolLM3", "OLMo 3"),
    *("Granite", "GLM-4", "Pythia", "Cohere 2"),
)
NAMES = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.soak) for name in STOCK]


def stock_model(name, **changes):
    """Return the model of that name in `STOCK`, with changed settings and random weights."""
    import transformers

    kind, settings = STOCK[name]
    # A copy, because transformers adds the theta to the object that it is given.
    settings = copy.deepcopy(settings | changes)
    cls = getattr(transformers, f"{kind}ForCausalLM")
    # Only this way of attention has softcaps.
    model = cls(cls.config_class(**settings, attn_implementation="eager")).eval()
    randomize(model)
    return model


def stored(model, *, parameters=False):
    """Return the tensors of a model of transformers, or its parameters, by their names in files."""
    found = dict(model.named_parameters()) if parameters else model.state_dict()
    neox = type(model).__name__ == "GPTNeoXForCausalLM"
    return {
        "embed_out.weight" if neox and name == "lm_head.weight" else name: tensor
        for name, tensor in found.items()
    }


@torch.no_grad()
def randomize(model, seed=0, std=0.15):
    """Draw all weights, so that no gain is 1 and no bias 0, and attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        weight.copy_(1 + 0.3 * drawn if "norm" in name else std * drawn)


def saved(model, folder, *, shard_size="1GB", **spelled):
    """Save a model of transformers in `folder`, with these fields of its config.json.

    A field that is None is left out. A shard has at most `shard_size`.
    """
    model.save_pretrained(folder, max_shard_size=shard_size)
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | spelled
    kept = {
        name: value for name, value in fields.items() if name not in spelled or value is not None
    }
    path.write_text(json.dumps(kept))
    return folder


def tokens(length, rows=1, vocab_size=97):
    """Return random ids (rows, length), the same in each call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocab_size, (rows, length), generator=generator)


@torch.inference_mode()
def apart(ours, theirs, ids):
    """Return how far the logits (B, T, vocab_size) of the two models are apart at most."""
    return float((ours(ids) - theirs(ids).logits).abs().max())
