"""The table of stock architectures of transformers: a row says how a class differs from Pion.

Each class is a Llama by its names and by the fields of its config, apart from what its row says. A
class computes a model if what it writes about the model reads back as the model. So a setting
without a field there is refused by its name, and no row lists what its class lacks.

Llama is from Touvron et al. 2023, "LLaMA: open and efficient foundation language models"; SmolLM2
and Llama 3.2 are Llamas too. Qwen2.5 has the architecture Qwen2.

transformers 5 chooses the rules for splitting words by the model type of many classes, whatever the
tokenizer.json says (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS in tokenization_auto.py). So only an
imported model, which has the tokenizer of its class, is exported as one of these.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter, itemgetter
from typing import Any, Literal

import torch
from torch import Tensor

from pion.config.model_config import APART, ModelConfig
from pion.config.part_fields import is_whole
from pion.config.parts import Heads
from pion.errors import BadInput
from pion.formats.huggingface.llama_like import (
    HEAD,
    ROPE_TYPES,
    Architecture,
    Fields,
    State,
    read_rotary,
    require,
    rotary_settings,
)
from pion.formats.model_tensors import Rows
from pion.later_fields import shown
from pion.model.decoder import Decoder
from pion.model.saved_weights import without_values


@dataclass(frozen=True)
class Value:
    """A setting of ours that a field of theirs gives.

    Attributes:
        path: the setting, as `heads.qk_norm`; or several with a space between.
        ours, theirs: make the value of one from that of the other. A field is not written if
            `theirs` returns None.
        only: the values of the field that can be read; empty: all.
    """

    path: str
    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]
    only: tuple[str, ...] = ()


def words(path: str, ours: Mapping[str, str]) -> Value:
    """Return a setting whose words are others there; `ours` has our words by theirs."""
    return Value(path, ours.get, {our: their for their, our in ours.items()}.get, tuple(ours))


GATED = words("activation", {"silu": "swiglu"})
TWO_MATRICES = words("activation", {"relu2": "relu2", "gelu": "gelu"})
# Our settings by the fields of each class.
FIELDS: Mapping[str, str | Value] = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "seq_len",
    "rms_norm_eps": "norm_eps",
    "initializer_range": "init_std",
    "tie_word_embeddings": "tie_embeddings",
    "hidden_act": GATED,
}
# The values of fields that a config.json leaves out, where an architecture has no others. A number
# of layers, ids or hidden states has no default: a config without it is damaged.
DEFAULTS: Fields = {
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
# Their names of our modules and of tensors that are named otherwise. Those of a block have the
# prefixes "model.layers.{i}." and "blocks.{i}.".
NAMES: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "lm_head": "lm_head",
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "feedforward_norm": "post_attention_layernorm",
    "feedforward": "mlp",
    "feedforward.up_bias": "mlp.up_proj.bias",
    "feedforward.down_bias": "mlp.down_proj.bias",
    "feedforward.router": "mlp.gate.weight",
}
# Settings that are not part of a computation. An export has no rows that only a `head_multiple`
# needs, and what changes nothing in the model is exported apart.
_FREE = frozenset(("init", "head_multiple", "imported", "came_as", "family", *APART))


@dataclass(frozen=True, kw_only=True)
class Row(Architecture):
    """A class of transformers as data.

    Attributes:
        fixed: settings that the class always has, by path.
        fields: what its fields set, where it differs from `FIELDS`.
        required: its fields that must have these values where they are read.
        written: its fields that always have these values where they are written.
        defaults: the values in which it differs from `DEFAULTS`.
        absent: fields that it does not have.
        names: its names of our modules, where it differs from `NAMES`.
        fused: its matrices that have the rows of several of ours, in order, in a block.
        windows: whether `sliding_window` counts in "all" layers or in those of its `layer_types`;
            "no": windows need `use_sliding_window`.
        rope_types: the kinds of rotary positions that the class can have and we compute.
        whole_heads: whether it refuses an n_heads that does not divide d_model.
        own_tokenizer: whether transformers may split words as the class's own tokenizer does.
    """

    name: str
    model_type: str
    fixed: Fields = field(default_factory=dict)
    fields: Mapping[str, str | Value] = field(default_factory=dict)
    required: Fields = field(default_factory=dict)
    written: Fields = field(default_factory=dict)
    defaults: Fields = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    windows: Literal["no", "all", "types"] = "no"
    rope_types: tuple[str, ...] = ROPE_TYPES
    whole_heads: bool = False
    own_tokenizer: bool = False

    def misfit(self, config: ModelConfig) -> str | None:
        """Return why the class can't compute the model; None if it can."""
        reason, short = super().misfit(config), self.short_name
        if reason is None and self.own_tokenizer and not config.imported:
            return f"transformers splits the text of each {short} as {short}'s own tokenizer does"
        return reason

    def lacks(self, config: ModelConfig) -> list[str]:
        """Return the settings of the model that are others when they are read back."""
        config = self.stored(config)
        found = []
        if self.whole_heads and config.d_model % config.n_heads:
            found = [f"a d_model {config.d_model} that n_heads {config.n_heads} does not divide"]
        try:
            again = self.read(self.fields_of(config))
        except BadInput as error:
            return [*found, f"such a model ({error})"]
        return found + [
            path if dataclasses.is_dataclass(value) else f"{path} {value}"
            for (path, value), (_, read) in zip(_computed(config), _computed(again))
            if not _alike(value, read)
        ]

    def stored(self, config: ModelConfig) -> ModelConfig:
        """Return the settings of the model as the class has it, if its maths is another."""
        return config

    def fields_of(self, config: ModelConfig) -> dict[str, Any]:
        """Return the config fields. What has no form there is left out."""
        scaling = config.rope_scaling if "llama3" in self.rope_types else None
        config = replace(config, heads=config.heads or Heads(), rope_scaling=scaling)
        hf_config = {
            "model_type": self.model_type,
            "architectures": [self.name],
            "attention_dropout": 0.0,
            **rotary_settings(config),
            **self.required,
            **self.written,
        }
        if self.windows == "all":
            hf_config["sliding_window"] = None
        elif self.windows == "types":  # its class in transformers 5.17 fails without a window
            kinds = ["full_attention"] * config.n_layers
            hf_config |= {"sliding_window": config.seq_len, "layer_types": kinds}
        for name, value in self._values():
            found = value.theirs(attrgetter(value.path.split()[0])(config))
            if name not in self.absent and (found is not None or value.theirs is _same):
                hf_config[name] = found
        return hf_config

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict."""
        sources = self.sources(config, state)
        pieces: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        for name, tensor in state.items():
            (source,) = sources[name]
            pieces[source.name].append((source.first, tensor))
        # A tensor that is whole stays itself: an adapter's names are found by it.
        return self.fields_of(config), {
            name: some[0][1]
            if len(some) == 1
            else torch.cat([tensor for _, tensor in sorted(some, key=itemgetter(0))])
            for name, some in pieces.items()
        }

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Return our settings for config fields.

        Raises BadInput for settings that our decoder does not support, and for a missing setting.
        """
        hf_config = {**DEFAULTS, **self.defaults, **hf_config}
        for name, wanted in self.required.items():
            require(hf_config, name, (wanted,))
        found: dict[str, Any] = {"imported": True, **self.fixed}
        try:
            self._require_all_seen(hf_config)
            found |= read_rotary(hf_config, self.rope_types)
            for name, value in self._values():
                if value.only:
                    require(hf_config, name, value.only)
                found |= dict.fromkeys(value.path.split(), value.ours(hf_config[name]))
        except KeyError as missing:
            raise BadInput(f"config.json has no {missing}") from None
        if found["n_kv_heads"] is None:
            found["n_kv_heads"] = found["n_heads"]
        settings: dict[str, Any] = {}
        for path, setting in found.items():
            part, _, last = path.rpartition(".")
            (settings.setdefault(part, {}) if part else settings)[last] = setting
        return ModelConfig.from_dict(settings)

    def rename(self, config: ModelConfig, hf_state: State) -> State:
        """Return the tensors by our names. Raises BadInput for an unexpected one, and for a part of
        a stack, or a fused matrix, that is missing or of another shape."""
        sources = self.sources(config, without_values(config).state_dict())
        used = {each.name: each.last for some in sources.values() for each in some}
        tied = {HEAD} if config.tie_embeddings else set()  # some programs save it too
        unknown = sorted(hf_state.keys() - used.keys() - tied)
        if unknown:
            raise BadInput(
                f"unexpected tensor {unknown[0]}: a model of this config has no parameter with "
                "that name"
            )
        for name, rows in used.items():
            if rows is not None and name in hf_state and hf_state[name].shape[:1] != (rows,):
                raise BadInput(
                    f"{name} has shape {tuple(hf_state[name].shape)}; the model's settings need "
                    f"{rows} rows"
                )
        return {
            name: _taken(hf_state, some)
            for name, some in sources.items()
            # Of a whole tensor that is missing, the decoder says so.
            if len(some) > 1 or some[0].last is not None or some[0].name in hf_state
        }

    def sources(self, config: ModelConfig, ours: Iterable[str]) -> dict[str, list[Rows]]:
        """Return of which rows of its tensors each of `ours` is made: of one, or of a stack."""
        found = {name: [Rows(self._their_name(name))] for name in ours}
        shapes = without_values(config).state_dict() if self.fused else {}
        for layer in range(config.n_layers):
            for theirs, modules in self.fused.items():
                first, matrix = 0, f"model.layers.{layer}.{theirs}.weight"
                for name in (f"blocks.{layer}.{module}.weight" for module in modules):
                    last = first + len(shapes[name])
                    found[name], first = [Rows(matrix, first, last)], last
        return found

    def _values(self) -> Iterator[tuple[str, Value]]:
        """Yield the fields that set something, and what each sets."""
        for name, value in {**FIELDS, **self.fields}.items():
            yield name, value if isinstance(value, Value) else Value(value, _same, _same)

    def _their_name(self, name: str) -> str:
        """Return its name of our tensor, by the longest part of our name that has a name there."""
        names = {**NAMES, **self.names}
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        inner = name if block is None else block[2]
        module = max((m for m in names if f"{inner}.".startswith(f"{m}.")), key=len)
        theirs = names[module] + inner[len(module) :]
        return theirs if block is None else f"model.layers.{block[1]}.{theirs}"

    def _require_all_seen(self, hf_config: Fields) -> None:
        """Raise BadInput unless a token sees all tokens before it. Raises KeyError.

        transformers counts the token itself: a window of the whole context hides nothing. Where
        `use_sliding_window` is false, the fields that describe the windows have no effect.
        """
        layers = hf_config.get("layer_types")
        kinds = layers if isinstance(layers, list) else [layers]
        known = {None, "full_attention"} | (
            {"sliding_attention"} if self.windows != "no" else set()
        )
        other = next((kind for kind in kinds if kind not in list(known)), None)
        if other is not None:
            raise BadInput(
                f"config.json: layer_types has {shown(other)}; only 'full_attention' is supported"
            )
        if self.windows == "no":
            return require(hf_config, "use_sliding_window", (False,))
        window, context = hf_config.get("sliding_window"), hf_config["max_position_embeddings"]
        counts = self.windows == "all" or layers is None or "sliding_attention" in kinds
        whole = window is None or (is_whole(window) and is_whole(context) and window >= context)
        if counts and not whole:
            raise BadInput(
                f"config.json: sliding_window is {shown(window)}, and max_position_embeddings is "
                f"{shown(context)}, so a token does not see all tokens before it. Pion does not "
                f"compute such a {self.short_name}. To use the model for texts that fit into a "
                f"window, copy it, and set max_position_embeddings to {shown(window)} in the copy"
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


def _same(value: Any) -> Any:
    return value


def _alike(one: Any, other: Any) -> bool:
    """Return whether two values are equal, or numbers of which one was computed from the other."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)


def _computed(config: ModelConfig) -> Iterator[tuple[str, Any]]:
    """Yield the settings that a class must have, by path. Heads without settings are usual ones."""
    for name in (each.name for each in dataclasses.fields(config)):
        if name == "heads":
            heads = config.heads or Heads()
            yield from (
                (f"heads.{f.name}", getattr(heads, f.name)) for f in dataclasses.fields(heads)
            )
        elif name not in _FREE:
            yield name, getattr(config, name)


def _taken(hf_state: State, rows: Iterable[Rows]) -> Tensor:
    """Take rows of tensors, stacked if there are several. Raises BadInput if a tensor is missing or
    differs."""
    tensors: State = {}
    for name, first, last in rows:
        if name not in hf_state:
            raise BadInput(f"the weights have no {name}")
        tensors[name] = hf_state[name] if last is None else hf_state[name][first:last]
    start, like = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.shape != like.shape:
            raise BadInput(
                f"{name} has shape {tuple(tensor.shape)}, unlike {start}: {tuple(like.shape)}"
            )
    return like if len(tensors) == 1 else torch.stack(list(tensors.values()))


# Of fields that Llama and Qwen3 have too. Theirs give biases to the output, which ours lacks.
NO_BIASES = {"attention_bias": False, "mlp_bias": False}
PLAIN = {"heads.qk_norm": False}
# The class has ids of its own as defaults, which our tokenizers do not have.
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
        required=NO_BIASES,
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
_MISTRAL = {
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
        written=NO_BOS,
        defaults=_MISTRAL,
        windows="all",
        own_tokenizer=True,
    ),
    Row(
        name="MinistralForCausalLM",
        model_type="ministral",
        fixed=PLAIN,
        written=NO_BOS,
        defaults=_MISTRAL,
        windows="types",
        own_tokenizer=True,
    ),
    Row(
        name="SeedOssForCausalLM",
        model_type="seed_oss",
        fixed=PLAIN,
        fields={"attention_bias": "heads.qkv_bias"},
        required={"attention_out_bias": False, "mlp_bias": False},
        written=NO_IDS,
        defaults={
            "attention_bias": True,
            "head_dim": 128,
            "num_key_value_heads": 8,
            "max_position_embeddings": 524_288,
        },
        own_tokenizer=True,
    ),
    Row(
        name="Phi3ForCausalLM",
        model_type="phi3",
        fixed=PLAIN,
        written=NO_IDS,
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        absent=("head_dim",),
        fused={
            "self_attn.qkv_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "mlp.gate_up_proj": ("feedforward.gate_proj", "feedforward.up_proj"),
        },
        windows="all",
        rope_types=("default",),
        own_tokenizer=True,
    ),
)
