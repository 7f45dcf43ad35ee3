"""Models of each architecture that GGUF files can have, with random weights."""

from dataclasses import replace

import torch

from pion.config.parts import Heads, RopeScaling
from pion.formats.export import export_model
from pion.formats.huggingface.architectures import config_from_transformers
from pion.formats.huggingface.stock_rows import FIRST, LATER
from pion.model.decoder import Decoder
from tests.support.finished_run import tiny_model, tiny_tokenizer
from tests.support.stock_models import STOCK
from tests.support.tiny_config import tiny_config

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
# The same of imports: a model of STOCK, and what differs from it.
IMPORTED = {
    "smollm 3": (
        "smollm3",
        "SmolLM3",
        {"num_hidden_layers": 5, "no_rope_layers": None, "rope_parameters": None},
    ),
    "phi 3": ("phi3", "Phi-3", {}),
    "phi 4 mini": ("phi3", "Phi-4-mini", {"sliding_window": None}),
    "olmo 2": ("olmo2", "OLMo 2", {}),
    "granite": ("granite", "Granite", {}),
    "llama with biases": ("llama", "Llama, biases", {}),
}
EXPRESSIBLE |= {name: (there, {"stock": rest}) for name, (there, *rest) in IMPORTED.items()}


def config_of(name, **changes):
    """Return the settings of a model of `EXPRESSIBLE`, with these changes."""
    own = EXPRESSIBLE[name][1]
    if "stock" not in own:
        return tiny_config(**own | changes)
    stock, differing = own["stock"]
    kind, fields = STOCK[stock]
    named = next(row for row in LATER + FIRST if row.name == f"{kind}ForCausalLM")
    fields |= differing
    fields = {n: v for n, v in fields.items() if v is not None or n not in differing}
    fields["model_type"] = named.model_type
    return replace(config_from_transformers(fields), **changes)


def random_model(vocab_size, **changes):
    """Return a tiny model whose weights are all random, and large, so that each part counts."""
    return randomized(tiny_model(vocab_size, seq_len=128, **changes))


def randomized(model):
    """Draw all weights of a model, and return the model."""
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
    changes = {"vocab_size": tiny_tokenizer().vocab_size}
    changes |= {} if name in IMPORTED else {"seq_len": 128}
    model = randomized(Decoder(config_of(name, **changes)))
    return model, exported(model, folder / "export")
