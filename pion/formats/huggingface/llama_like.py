"""What our decoder shares with stock architectures of transformers: names, settings, positions.

Each of these architectures is a Llama by its names and by the fields of its config: swiglu.py,
qwen3_moe.py and arcee.py say what they add or leave out.

Rotary settings have two spellings. transformers 5 writes one object, `rope_parameters`.
transformers 4 wrote `rope_theta` and, for scaled positions, the object `rope_scaling`. If a config
has both objects, transformers reads `rope_scaling`. A value in an object comes before one outside
it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pion.config.model_config import APART, ModelConfig
from pion.config.parts import Heads, RopeScaling
from pion.errors import BadInput
from pion.later_fields import shown

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = "dict[str, Tensor]"
# Entries of a config.json.
Fields: TypeAlias = Mapping[str, Any]

# What these architectures can compute, and what is not part of a computation. An export has no rows
# that only a `head_multiple` needs, and what changes nothing in the model is exported apart. The
# settings of all else must be absent.
# fmt: off
FIELDS = frozenset((
    "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "seq_len", "head_dim",
    "rope_theta", "rope_scaling", "norm_eps", "tie_embeddings", "init", "init_std", "head_multiple",
    "imported", "family", *APART,
))
# fmt: on

# The values of fields that a config.json leaves out, where an architecture has no others. A number
# of layers, ids or hidden states has no default: a config without it is damaged.
DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "num_key_value_heads": None,  # n_heads
    "head_dim": None,  # d_model / n_heads
}

# Our names and theirs, apart from the feed-forward layer. A block's parts have the prefix
# "blocks.{i}." and "model.layers.{i}.".
HEAD = "lm_head.weight"
_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    HEAD: HEAD,
}
_BLOCK_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "feedforward_norm.weight": "post_attention_layernorm.weight",
}
_QK_NORM_NAMES = {
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
}
_QKV_BIAS_NAMES = {
    "attention.q_proj.bias": "self_attn.q_proj.bias",
    "attention.k_proj.bias": "self_attn.k_proj.bias",
    "attention.v_proj.bias": "self_attn.v_proj.bias",
}
# Of all architectures here: RotaryEmbeddingConfigMixin.default_theta.
DEFAULT_THETA = 10_000.0
ROPE_TYPES = ("default", "llama3")
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")
_ORIGINAL = "original_max_position_embeddings"


class Architecture:
    """A model class of transformers, and how our models become its models and back.

    As it is here, its feed-forward layers are SwiGLU.

    Attributes:
        name: the name of the class.
        model_type: its name in a config.json.
        stock: whether it is part of transformers; the export of any other has modelling files.
        heads: what its heads have, if that differs from ours without settings.
        own: entries of its config.json that are always the same.
        required: the same, as they must be in a config.json that is read.
        defaults: the values in which it differs from `DEFAULTS`.
        fields: our settings that it can compute.
    """

    name: str
    model_type: str
    stock = True
    heads: Heads | None = None
    own: ClassVar[Fields] = {}
    required: ClassVar[Fields] = {}
    defaults: ClassVar[Fields] = {}
    fields: frozenset[str] = FIELDS

    def misfit(self, config: ModelConfig) -> str | None:
        """Return why the class can't compute the model; None if it can."""
        for wrong, reason in self.reasons(config, config.heads or Heads()):
            if wrong:
                return reason
        kind = "llama3" if config.rope_scaling is None else config.rope_scaling.kind
        if kind not in ROPE_TYPES:
            return f"{self.name} is written without rope_scaling.kind {kind}"
        own_heads = {"heads"} if self.heads is not None and config.heads == self.heads else set()
        return _lacks(self.name.removesuffix("ForCausalLM"), config, self.fields | own_heads)

    def reasons(self, config: ModelConfig, heads: Heads) -> Iterable[tuple[bool, str]]:
        """Return what would keep the class from computing a model, and whether it does.

        `heads` are those of the model.
        """
        return ()

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict."""
        names = self.names(config)
        hf_config = {
            **settings(config),
            **self.own,
            "model_type": self.model_type,
            "architectures": [self.name],
            "intermediate_size": config.d_ff,
        }
        return hf_config, {names[name]: tensor for name, tensor in state.items()}

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Return our settings for config fields.

        Raises BadInput for settings that our decoder does not support, and for a missing setting.
        """
        hf_config = {**DEFAULTS, **self.defaults, **hf_config}
        require(hf_config, self.required)
        _require_full_attention(hf_config)
        try:
            n_heads, n_kv_heads = hf_config["num_attention_heads"], hf_config["num_key_value_heads"]
            return ModelConfig.from_dict(
                {
                    "d_model": hf_config["hidden_size"],
                    "n_layers": hf_config["num_hidden_layers"],
                    "n_heads": n_heads,
                    "n_kv_heads": n_heads if n_kv_heads is None else n_kv_heads,
                    "vocab_size": hf_config["vocab_size"],
                    "seq_len": hf_config["max_position_embeddings"],
                    "head_dim": hf_config["head_dim"],
                    "norm_eps": hf_config["rms_norm_eps"],
                    "tie_embeddings": hf_config["tie_word_embeddings"],
                    "init_std": hf_config["initializer_range"],
                    "imported": True,
                    "heads": self.heads,
                    **read_rotary(hf_config),
                    **self.read_feedforward(hf_config),
                }
            )
        except KeyError as missing:
            raise BadInput(f"config.json has no {missing}") from None

    def read_feedforward(self, hf_config: Mapping[str, Any]) -> dict[str, Any]:
        """Return our settings of the feed-forward layers. Raises KeyError and BadInput."""
        return {"d_ff": hf_config["intermediate_size"]}

    def rename(self, config: ModelConfig, hf_state: State) -> State:
        """Return the tensors by our names. Raises BadInput for an unexpected one, and for a part of
        a stack that is missing or of another shape."""
        tied = {HEAD} if config.tie_embeddings else set()  # some programs save it too
        given = {name: tensor for name, tensor in hf_state.items() if name not in tied}
        return {name: _stack(given, each) for name, each in self.stacked(config).items()} | renamed(
            self.names(config), given
        )

    def sources(self, config: ModelConfig, ours: Iterable[str]) -> dict[str, list[str]]:
        """Return of which of its tensors each of `ours` is made: of one, or a stack of several."""
        names, stacked = self.names(config), self.stacked(config)
        return {name: stacked.get(name) or [names[name]] for name in ours}

    def stacked(self, config: ModelConfig) -> dict[str, list[str]]:
        """Return of which of its tensors those of ours are stacks that have no name there."""
        return {}

    def feedforward_names(self, config: ModelConfig) -> Mapping[str, str]:
        """Return the name of every tensor of a feed-forward layer, by our name in the layer."""
        return {
            f"{name}.weight": f"{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")
        }

    def names(self, config: ModelConfig) -> dict[str, str]:
        """Return the name of every tensor, by our name."""
        in_block = dict(_BLOCK_NAMES)
        if config.heads is None or config.heads.qk_norm:
            in_block |= _QK_NORM_NAMES
        if config.heads is not None and config.heads.qkv_bias:
            in_block |= _QKV_BIAS_NAMES
        feedforward = self.feedforward_names(config)
        in_block |= {f"feedforward.{ours}": f"mlp.{name}" for ours, name in feedforward.items()}
        found = {
            f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
            for layer in range(config.n_layers)
            for ours, theirs in in_block.items()
        }
        tied = {HEAD} if config.tie_embeddings else set()
        return {name: theirs for name, theirs in _NAMES.items() if name not in tied} | found


def _lacks(name: str, config: ModelConfig, fields: Collection[str]) -> str | None:
    """Return which settings of the model are not in `fields`, as a sentence; None if all are."""
    missing = [
        field if isinstance(value, dict) else f"{field} {value}"
        for field, value in config.to_dict().items()
        # A record names a softcap even if there is none.
        if field not in fields and (field, value) != ("softcap", None)
    ]
    return f"{name} does not support {', '.join(missing)}" if missing else None


def settings(config: ModelConfig) -> dict[str, Any]:
    """Return the config fields of all that is not the feed-forward layer."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.seq_len,
        **rotary_settings(config),
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def _require_full_attention(hf_config: Mapping[str, Any]) -> None:
    """Raise BadInput for attention through windows.

    Where `use_sliding_window` is false, the fields that describe the windows have no effect.
    """
    require(hf_config, {"use_sliding_window": False})
    layers = hf_config.get("layer_types")
    kinds = layers if isinstance(layers, list) else [layers]
    other = next((kind for kind in kinds if kind not in (None, "full_attention")), None)
    if other is not None:
        raise BadInput(
            f"config.json: layer_types has {shown(other)}; only 'full_attention' is supported"
        )


def require(hf_config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise BadInput for a field that has another value than this. It may be missing."""
    for name, value in expected.items():
        if hf_config.get(name, value) != value:
            raise BadInput(
                f"config.json: {name} is {shown(hf_config[name])}; only {value!r} is supported"
            )


def renamed(ours_to_theirs: Mapping[str, str], hf_state: State) -> State:
    """Return the tensors by our names. Raises BadInput for a tensor that has none."""
    ours = {theirs: name for name, theirs in ours_to_theirs.items()}
    unknown = sorted(hf_state.keys() - ours.keys())
    if unknown:
        raise BadInput(
            f"unexpected tensor {unknown[0]}: a model of this config has no parameter with that "
            "name"
        )
    return {ours[name]: tensor for name, tensor in hf_state.items()}


def _stack(hf_state: State, names: Iterable[str]) -> Tensor:
    """Take the tensors of these names as one. Raises BadInput if one is missing or differs."""
    import torch

    tensors: State = {}
    for name in names:
        if name not in hf_state:
            raise BadInput(f"the weights have no {name}")
        tensors[name] = hf_state.pop(name)
    first, like = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.shape != like.shape:
            raise BadInput(
                f"{name} has shape {tuple(tensor.shape)}, unlike {first}: {tuple(like.shape)}"
            )
    return torch.stack(list(tensors.values()))


def rotary_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the rotary fields of a config.

    Settings that are not the defaults are written in both spellings: transformers 4 and other
    programs that only know the older one would compute something else without a word.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if scaling is None:
        old = {} if theta == DEFAULT_THETA else {"rope_theta": theta}
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, **old}
    rope = {"rope_type": "llama3"}
    rope |= {name: getattr(scaling, name) for name in (*_FACTORS, _ORIGINAL)}
    return {
        "rope_parameters": {"rope_theta": theta, **rope},
        "rope_theta": theta,
        "rope_scaling": rope,
    }


def read_rotary(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of our settings.

    Raises BadInput for another kind of rotary positions than `ROPE_TYPES`, and for missing factors.
    """
    rope = _rotary_object(hf_config)
    for where in (rope, hf_config):
        if where.get("partial_rotary_factor") not in (None, 1):
            raise BadInput(
                f"config.json: partial_rotary_factor is {shown(where['partial_rotary_factor'])}; "
                "only 1 is supported"
            )
    theta = rope.get("rope_theta")
    if theta is None:
        theta = hf_config.get("rope_theta", DEFAULT_THETA)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        known = " and ".join(map(repr, ROPE_TYPES))
        raise BadInput(f"config.json: rope_type is {shown(rope_type)}; only {known} are supported")
    if rope_type == "default":
        return {"rope_theta": theta}
    missing = [name for name in _FACTORS if name not in rope]
    if missing:
        raise BadInput(f"config.json: rotary positions of type llama3 need {', '.join(missing)}")
    given = [where.get(_ORIGINAL) for where in (hf_config, rope)]
    given.append(hf_config["max_position_embeddings"])
    factors = {name: rope[name] for name in _FACTORS}
    factors[_ORIGINAL] = next(tokens for tokens in given if tokens is not None)
    return {"rope_theta": theta, "rope_scaling": RopeScaling(**factors)}


def _rotary_object(hf_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object with rotary settings, {} if there is none. Raises BadInput for others."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = hf_config.get(name)
        if rope in (None, {}):
            continue
        if not isinstance(rope, Mapping):
            raise BadInput(f"config.json: {name} is {shown(rope)}; it must be an object")
        for inner, value in rope.items():
            if isinstance(value, Mapping):
                raise BadInput(
                    f"config.json: {name} has settings for {shown(inner)} alone; only settings "
                    "for all layers are supported"
                )
        return rope
    return {}
