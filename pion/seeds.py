"""Read the checkpoints of the seed projects without running any code in them.

They are `.pt` files and contain a pickle. A Pion checkpoint is {step, model, optimizer, config,
tokens_seen}, or {step, model, config} after fine-tuning. `config` is a pickled object of a class
that the seed defines.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.model.decoder import Decoder

# The context of every Pion seed, for checkpoints that don't record it.
PION_SEQ_LEN = 2048

# Their names and ours. A block's parts have the prefix "layers.{i}." and "blocks.{i}.".
_NAMES = {
    "embed.weight": "embed.weight",
    "norm.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "norm1.weight": "attention_norm.weight",
    "attn.q_proj.weight": "attention.q_proj.weight",
    "attn.k_proj.weight": "attention.k_proj.weight",
    "attn.v_proj.weight": "attention.v_proj.weight",
    "attn.o_proj.weight": "attention.o_proj.weight",
    "attn.q_norm.weight": "attention.q_norm.weight",
    "attn.k_norm.weight": "attention.k_norm.weight",
    "norm2.weight": "feedforward_norm.weight",
    "ffn.w1.weight": "feedforward.gate_proj.weight",
    "ffn.w2.weight": "feedforward.down_proj.weight",
    "ffn.w3.weight": "feedforward.up_proj.weight",
}


class _SeedConfig:
    """Replaces the seed's `model.PionConfig`. It only has attributes and runs no code."""


# The restricted unpickler of torch.load compares these with the names in the file.
_SeedConfig.__module__, _SeedConfig.__qualname__, _SeedConfig.__name__ = (
    "model",
    "PionConfig",
    "PionConfig",
)


def import_seed(path: str | Path) -> Decoder:
    """Return the model of a Pion seed's checkpoint, in fp32 on the CPU.

    The seed applied its softcap only in training; an imported model with a softcap always applies
    it. Raises BadInput for a file that is not such a checkpoint or has more than plain data.
    """
    checkpoint = _read(Path(path))
    try:
        state = _rename(checkpoint["model"])
        config = _config(checkpoint.get("config"), state)
        if config.tie_embeddings:
            head = state.pop("lm_head.weight", None)
            if head is not None and not torch.equal(head, state["embed.weight"]):
                raise BadInput("lm_head.weight differs from embed.weight, but they should be tied")
        return Decoder.from_state(config, state)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([_SeedConfig]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path} is damaged, or it contains Python objects other than tensors and plain "
            "values. Pion did not load the file, because loading it could run code. "
            f"({_reason(error)})"
        ) from None
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise BadInput(
            f"{path} is not a PyTorch checkpoint, or is damaged ({_reason(error)})"
        ) from None
    model = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(model, dict) or not all(isinstance(t, Tensor) for t in model.values()):
        raise BadInput(f"{path} is not a seed's checkpoint: it has no tensors under 'model'")
    return checkpoint


def _reason(error: Exception) -> str:
    """Return the cause in torch's message, without torch's advice to run the file."""
    global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it asks for {global_name[1]}" if global_name else type(error).__name__


def _rename(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by our names. Names from a compiled model also work."""
    state = {}
    for key, tensor in model.items():
        name = key.removeprefix("_orig_mod.")
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        if match and match[2] in _BLOCK_NAMES:
            state[f"blocks.{match[1]}.{_BLOCK_NAMES[match[2]]}"] = tensor
        elif name in _NAMES:
            state[_NAMES[name]] = tensor
        else:
            raise BadInput(f"unexpected tensor {key}: no Pion model has a parameter with that name")
    return state


def _config(seed: Any, state: dict[str, Tensor]) -> ModelConfig:
    """Return the settings: shapes from the tensors, the rest from the seed's config.

    Without a config, the rest are the values of every Pion seed, without softcap, as in the seed's
    inference.
    """
    for needed in ("embed.weight", "blocks.0.attention.q_norm.weight"):
        if needed not in state:
            raise BadInput(f"the weights have no {needed}: this is not a Pion model")
    vocab_size, d_model = state["embed.weight"].shape
    head_dim = len(state["blocks.0.attention.q_norm.weight"])

    def rows(name: str) -> int:
        return len(state[name]) if name in state else 0

    recorded = vars(seed) if isinstance(seed, _SeedConfig) else {}
    # Checkpoints from before `use_soft_cap` existed were trained with the cap.
    capped = recorded.get("use_soft_cap", True) and "logit_cap" in recorded
    return ModelConfig.from_dict(
        {
            "d_model": d_model,
            "n_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            "n_heads": rows("blocks.0.attention.q_proj.weight") // head_dim,
            "n_kv_heads": rows("blocks.0.attention.k_proj.weight") // head_dim,
            "d_ff": rows("blocks.0.feedforward.gate_proj.weight"),
            "vocab_size": vocab_size,
            "seq_len": recorded.get("max_seq_len", PION_SEQ_LEN),
            "head_dim": head_dim,
            "rope_theta": recorded.get("rope_theta", 10_000.0),
            "softcap": recorded["logit_cap"] if capped else None,
            "tie_embeddings": recorded.get("tie_embeddings", True),
        }
    )
