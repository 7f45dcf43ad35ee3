"""Models of each architecture that GGUF files can have, with random weights."""

import torch

from pion.config.parts import Heads, RopeScaling
from pion.formats.export import export_model
from tests.support.finished_run import tiny_model, tiny_tokenizer

_PLAIN = Heads(qk_norm=False)
_SCALED = RopeScaling(factor=8.0, original_max_position_embeddings=32)
# By name, llama.cpp's architecture and what differs from the tiny dense model.
EXPRESSIBLE = {
    "pion": ("qwen3", {}),
    "wide heads": ("qwen3", {"head_dim": 12}),
    "untied": ("qwen3", {"tie_embeddings": False}),
    "tachyon": ("qwen3moe", {"experts": {"n": 8, "d_shared": 32}, "d_ff": 32}),
    "llama": ("llama", {"heads": _PLAIN}),
    "llama 3": (
        "llama",
        {"heads": _PLAIN, "rope_scaling": _SCALED, "rope_theta": 5e5, "head_dim": 16},
    ),
    "qwen2": ("qwen2", {"heads": Heads(qk_norm=False, qkv_bias=True), "imported": True}),
    "arcee": ("arcee", {"heads": _PLAIN, "activation": "relu2", "rope_scaling": _SCALED}),
}


def random_model(vocab_size, **changes):
    """Return a tiny model whose weights are all random, and large, so that each part counts."""
    model = tiny_model(vocab_size, seq_len=128, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * drawn if "norm" in name else 0.2 * drawn)
    return model


def exported(model, folder):
    """Export a model with the tiny tokenizer, and return the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.parent / "tokenizer.json"
    tiny_tokenizer().save(tokenizer)
    export_model(model, tokenizer, folder)
    return folder


def expressible(name, folder):
    """Return a model of `EXPRESSIBLE` and the folder to which it was exported."""
    model = random_model(tiny_tokenizer().vocab_size, **EXPRESSIBLE[name][1])
    return model, exported(model, folder / "export")
