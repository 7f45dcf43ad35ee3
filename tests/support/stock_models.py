"""Tiny models of transformers' own classes, whose weights, biases and gains are all random."""

import copy
import json

import torch

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
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
    # A window of the whole context hides nothing.
    "Ministral": (
        "Ministral",
        _TINY
        | {"sliding_window": 2048, "layer_types": ["full_attention"] * 2}
        | {"rope_theta": 1e6, "head_dim": 16},
    ),
    "Seed-OSS": (
        "SeedOss",
        _TINY | {"head_dim": 16, "pad_token_id": None, "attention_dropout": 0.0},
    ),
    "Phi-3": ("Phi3", _TINY | {"pad_token_id": None}),
}


def stock_model(name, **changes):
    """Return the model of that name in `STOCK`, with changed settings and random weights."""
    import transformers

    kind, settings = STOCK[name]
    # A copy, because transformers adds the theta to the object that it is given.
    settings = copy.deepcopy(settings | changes)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    randomize(model)
    return model


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
