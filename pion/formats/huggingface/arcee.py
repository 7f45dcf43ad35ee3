"""A decoder with two matrices in each feed-forward layer, as transformers' Arcee.

Arcee has rotary positions, no norms of queries and keys, and any activation between up and down.
Layers that are mixtures of matrices are multiplied out. So the folder has the sizes of a dense
model. Read back, it is such a model, with biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads
from pion.errors import BadInput
from pion.formats.huggingface import core
from pion.formats.huggingface.core import State
from pion.later_fields import shown
from pion.model.decoder import Decoder

ARCHITECTURE, MODEL_TYPE = "ArceeForCausalLM", "arcee"
ACTIVATIONS = ("relu2", "gelu")  # by the same names in transformers
FIELDS = core.FIELDS | {"activation", "heads", "primitives", "feedforward_bias"}
DEFAULTS = {"hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_PARTS = {"up_proj.weight": "up_proj.weight", "down_proj.weight": "down_proj.weight"}
_BIASES = {"up_bias": "up_proj.bias", "down_bias": "down_proj.bias"}


def misfit(config: ModelConfig) -> str | None:
    """Return why stock Arcee can't compute the model; None if it can."""
    if config.activation not in ACTIVATIONS:
        return "Arcee has two matrices in a feed-forward layer, not three"
    if config.d_model % config.n_heads:
        return "Arcee needs a d_model that is a multiple of n_heads"
    heads = config.heads or Heads()
    if heads.qk_norm:
        return "Arcee does not normalize queries and keys"
    if heads != Heads(qk_norm=False):
        return "Arcee does not support heads"
    part = config.feedforward_part
    if part is not None and part.unlike_dense is not None:
        return f"Arcee does not support {part.unlike_dense}"
    return core.lacks("Arcee", config, FIELDS)


def to_arcee(config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
    """Return the config fields and the state dict of Arcee."""
    if config.feedforward != "dense":
        config, state = multiplied_out(config, state)
    hf_config = core.settings(config) | {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "intermediate_size": config.d_ff,
        "hidden_act": config.activation,
        "mlp_bias": config.feedforward_bias,
        "bos_token_id": None,  # else Arcee's own, which our tokenizers do not have
    }
    names = _names(config)
    return hf_config, {names[name]: tensor for name, tensor in state.items()}


def multiplied_out(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
    """Return the model with dense feed-forward layers, with biases, that compute the same."""
    model = Decoder.from_state(config, state)
    for part in model.shared_parts():
        config, state = part.multiplied_out(config, state, model.blocks)
    return config, state


def read_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return the config fields of an Arcee model as our settings.

    Raises BadInput for settings that our decoder does not support, and for a missing setting.
    """
    hf_config = core.with_defaults(hf_config, DEFAULTS)
    activation = hf_config["hidden_act"]
    if activation not in ACTIVATIONS:
        expected = " and ".join(map(repr, ACTIVATIONS))
        raise BadInput(
            f"config.json: hidden_act is {shown(activation)}; only {expected} are supported"
        )

    def feedforward() -> dict[str, Any]:
        return {
            "d_ff": hf_config["intermediate_size"],
            "activation": activation,
            "heads": {"qk_norm": False},
            "feedforward_bias": hf_config["mlp_bias"],
        }

    core.require(hf_config, {"attention_bias": False})
    return core.read(hf_config, feedforward)


def rename(config: ModelConfig, hf_state: State) -> State:
    """Return the tensors of an Arcee model by our names. Raises BadInput for an unexpected one."""
    return core.renamed(_names(config), core.without_tied_head(config, hf_state))


def _names(config: ModelConfig) -> dict[str, str]:
    names = core.names(config)
    parts = _PARTS | (_BIASES if config.feedforward_bias else {})
    for layer in range(config.n_layers):
        for ours, theirs in parts.items():
            names[f"blocks.{layer}.feedforward.{ours}"] = f"model.layers.{layer}.mlp.{theirs}"
    return names
