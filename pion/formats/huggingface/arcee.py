"""A decoder with two matrices in each feed-forward layer, as transformers' Arcee.

Arcee has rotary positions, no norms of queries and keys, and any activation between up and down.
Layers that are mixtures of matrices are multiplied out. So the folder has the sizes of a dense
model. Read back, it is such a model, with biases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pion.config.model_config import PARTS, ModelConfig
from pion.config.parts import Heads
from pion.errors import BadInput
from pion.formats.huggingface import llama_like
from pion.formats.huggingface.llama_like import Fields, State
from pion.later_fields import shown
from pion.model.decoder import Decoder

ACTIVATIONS = ("relu2", "gelu")  # by the same names in transformers


class Arcee(llama_like.Architecture):
    """A decoder with two matrices in each feed-forward layer."""

    name, model_type = "ArceeForCausalLM", "arcee"
    heads = Heads(qk_norm=False)
    # Else Arcee's own, which our tokenizers do not have.
    own: ClassVar[Fields] = {"bos_token_id": None}
    required: ClassVar[Fields] = {"attention_bias": False}
    defaults: ClassVar[Fields] = {
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    }
    fields = (
        llama_like.FIELDS
        | {"activation", "feedforward_bias"}
        | {name for name, kind in PARTS.items() if kind.mixed}
    )

    def reasons(self, config: ModelConfig, heads: Heads) -> Iterable[tuple[bool, str]]:
        """Return what would keep Arcee from computing a model, and whether it does."""
        part = config.feedforward_part
        unlike_dense = None if part is None else part.unlike_dense
        return (
            (
                config.activation not in ACTIVATIONS,
                "Arcee has two matrices in a feed-forward layer, not three",
            ),
            (
                config.d_model % config.n_heads != 0,
                "Arcee needs a d_model that is a multiple of n_heads",
            ),
            (heads.qk_norm, "Arcee does not normalize queries and keys"),
            (heads != self.heads, "Arcee does not support heads"),
            (unlike_dense is not None, f"Arcee does not support {unlike_dense}"),
        )

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict of Arcee."""
        if config.feedforward != "dense":
            config, state = multiplied_out(config, state)
        hf_config, hf_state = super().write(config, state)
        hf_config |= {"hidden_act": config.activation, "mlp_bias": config.feedforward_bias}
        return hf_config, hf_state

    def read_feedforward(self, hf_config: Mapping[str, Any]) -> dict[str, Any]:
        """Return our settings of the feed-forward layers. Raises BadInput for another activation.

        Raises KeyError for a missing setting.
        """
        activation = hf_config["hidden_act"]
        if activation not in ACTIVATIONS:
            expected = " and ".join(map(repr, ACTIVATIONS))
            raise BadInput(
                f"config.json: hidden_act is {shown(activation)}; only {expected} are supported"
            )
        return {
            "d_ff": hf_config["intermediate_size"],
            "activation": activation,
            "feedforward_bias": hf_config["mlp_bias"],
        }

    def feedforward_names(self, config: ModelConfig) -> Mapping[str, str]:
        """Return the name of every tensor of a feed-forward layer, by our name in the layer."""
        matrices = {"up_proj.weight": "up_proj.weight", "down_proj.weight": "down_proj.weight"}
        biases = {"up_bias": "up_proj.bias", "down_bias": "down_proj.bias"}
        return matrices | (biases if config.feedforward_bias else {})


def multiplied_out(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
    """Return the model with dense feed-forward layers, with biases, that compute the same."""
    model = Decoder.from_state(config, state)
    for part in model.shared_parts():
        config, state = part.multiplied_out(config, state, model.blocks)
    return config, state
