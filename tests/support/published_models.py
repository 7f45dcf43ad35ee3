"""The settings of published models, and folders that look like them but have no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.finished_run import tiny_tokenizer

Fields = dict[str, Any]


def sizes(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int) -> Fields:
    return {
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "intermediate_size": d_ff,
        "tie_word_embeddings": True,
    }


_SMOLLM2 = {
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
}
_QWEN = {
    "vocab_size": 151_936,
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
}
_QWEN3 = _QWEN | {
    "max_position_embeddings": 40_960,
    "head_dim": 128,
    "sliding_window": None,
    "max_window_layers": 28,
    "attention_bias": False,
    "rope_scaling": None,
}
# By name: the class, the fields of the published config.json in the spelling of that file, and how
# many parameters the model has.
PUBLISHED: dict[str, tuple[str, Fields, int]] = {
    "SmolLM2-135M": ("Llama", sizes(576, 30, 9, 3, 1536) | _SMOLLM2, 134_515_008),
    "SmolLM2-360M": ("Llama", sizes(960, 32, 15, 5, 2560) | _SMOLLM2, 361_821_120),
    "Qwen2.5-0.5B": (
        "Qwen2",
        sizes(896, 24, 14, 2, 4864)
        | _QWEN
        | {"max_position_embeddings": 32_768, "sliding_window": 32_768, "max_window_layers": 21},
        494_032_768,
    ),
    "Qwen3-0.6B": ("Qwen3", sizes(1024, 28, 16, 8, 3072) | _QWEN3, 596_049_920),
    "Qwen3-1.7B": ("Qwen3", sizes(2048, 28, 16, 8, 6144) | _QWEN3, 1_720_574_976),
}


def write_published(folder: Path, name: str) -> Path:
    """Write the settings of a published model into a new folder, with a tiny tokenizer.

    The weights are a placeholder: a job that starts from the folder can be planned and checked, but
    not run.
    """
    kind, fields, _ = PUBLISHED[name]
    settings = fields | {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    tiny_tokenizer().save(folder / "tokenizer.json")
    save_file({"placeholder": torch.zeros(1)}, folder / "model.safetensors")
    return folder
