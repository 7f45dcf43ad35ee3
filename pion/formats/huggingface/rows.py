"""A row says how a class of transformers differs from Pion; stock_rows.py has the rows.

Each class is a Llama by its names and by the fields of its config, apart from what its row says. A
class computes a model if what it writes about the model reads back as the model. So a setting
without a field there is refused by its name, and no row lists what its class lacks.

transformers 5 chooses the rules for splitting words by the model type of many classes, whatever the
tokenizer.json says (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS in tokenization_auto.py). So only an
imported model, which has the tokenizer of its class, is exported as one of these.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor

from pion.config.model_config import APART, ModelConfig
from pion.config.part_fields import is_whole
from pion.config.parts import Heads, Scales
from pion.errors import BadInput
from pion.formats.huggingface.architecture import HEAD, Architecture, Fields, State, require
from pion.formats.huggingface.attention_fields import Layers, Rotary
from pion.formats.model_tensors import Rows
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


GATED = words("activation", {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"})
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
        fields: what its fields set, where it differs from `FIELDS`; None: it has no such field.
        required: its fields that must have these values where they are read.
        written: its fields that always have these values where they are written.
        defaults: the values in which it differs from `DEFAULTS`.
        absent: fields that it does not have.
        names: its names of our modules, where it differs from `NAMES`.
        fused: its matrices that have the rows of several of ours, in order, in a block.
        by_heads: whether these are the rows of one head after the other (GPT-NeoX).
        blocks: what the names of a block's tensors begin with, before its number.
        layers: what it says of each layer.
        rotary: what it says of rotary positions.
        scaled: whether embeddings are multiplied by the root of d_model.
        whole_heads: whether it refuses an n_heads that does not divide d_model.
        own_tokenizer: whether transformers may split words as the class's own tokenizer does.
    """

    name: str
    model_type: str
    fixed: Fields = field(default_factory=dict)
    fields: Mapping[str, str | Value | None] = field(default_factory=dict)
    required: Fields = field(default_factory=dict)
    written: Fields = field(default_factory=dict)
    defaults: Fields = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_heads: bool = False
    blocks: str = "model.layers"
    layers: Layers = field(default_factory=Layers)
    rotary: Rotary = field(default_factory=Rotary)
    scaled: bool = False
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
        config = self.stored(_settled(config))
        widths = []
        if self.whole_heads and config.d_model % config.n_heads:
            widths = [f"a d_model {config.d_model} that n_heads {config.n_heads} does not divide"]
        try:
            again = self.read(self.fields_of(config))
        except BadInput as error:
            return [*widths, f"such a model ({error})"]
        return widths + [
            path if dataclasses.is_dataclass(value) else f"{path} {value}"
            for (path, value), (_, read) in zip(_computed(config), _computed(again))
            if not _alike(value, read)
        ]

    def stored(self, config: ModelConfig) -> ModelConfig:
        """Return the settings of the model as the class has it, if its maths is another."""
        return config

    def fields_of(self, config: ModelConfig) -> dict[str, Any]:
        """Return the config fields. What has no form there is left out."""
        config = replace(
            _settled(config), heads=config.heads or Heads(), scales=config.scales or Scales()
        )
        hf_config = {
            "model_type": self.model_type,
            "architectures": [self.name],
            "attention_dropout": 0.0,
            **self.rotary.write(config),
            **self.layers.write(config),
            **self.required,
            **self.written,
        }
        for name, value in self._values():
            their_value = value.theirs(attrgetter(value.path.split()[0])(config))
            if name not in self.absent and (their_value is not None or value.theirs is _same):
                hf_config[name] = their_value
        return hf_config

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict."""
        sources = self.sources(config, state)
        pieces: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        for name, tensor in state.items():
            places = sources[name]
            parts = tensor.chunk(len(places)) if len(places) > 1 else [tensor]
            for source, part in zip(places, parts, strict=True):
                pieces[source.name].append((source.first, part))
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
        fields: dict[str, Any] = {"imported": True, **self.fixed}
        try:
            for name, value in self._values():
                if value.only:
                    require(hf_config, name, value.only)
                fields |= dict.fromkeys(value.path.split(), value.ours(hf_config[name]))
            rotary = self.rotary.read(hf_config)
            layers = self.layers.read(hf_config, rotary.pop("windows.rope_theta", None))
            fields |= rotary | layers
        except KeyError as missing:
            raise BadInput(f"config.json has no {missing}") from None
        if self.scaled and is_whole(fields["d_model"]):
            fields["scales.embeddings"] = fields["d_model"] ** 0.5
        if fields["n_kv_heads"] is None:
            fields["n_kv_heads"] = fields["n_heads"]
        settings: dict[str, Any] = {}
        for path, setting in fields.items():
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
        sources = {name: [Rows(self._their_name(name))] for name in ours}
        shapes = without_values(config).state_dict() if self.fused else {}
        heads = config.n_heads if self.by_heads else 1
        fused = itertools.product(range(config.n_layers), self.fused.items(), ("weight", "bias"))
        for layer, (theirs, modules), kind in fused:
            names = [f"blocks.{layer}.{module}.{kind}" for module in modules]
            counts = [len(shapes[name]) // heads for name in names if name in shapes]
            starts = [*itertools.accumulate(counts, initial=0)]
            for name, first, count in zip(names, starts, counts):
                every = (head * starts[-1] + first for head in range(heads))
                matrix = f"{self.blocks}.{layer}.{theirs}.{kind}"
                sources[name] = [Rows(matrix, start, start + count) for start in every]
        return sources

    def _values(self) -> Iterator[tuple[str, Value]]:
        """Yield the fields that set something, and what each sets."""
        for name, value in {**FIELDS, **self.fields}.items():
            if value is not None:
                yield name, value if isinstance(value, Value) else Value(value, _same, _same)

    def _their_name(self, name: str) -> str:
        """Return its name of our tensor, by the longest part of our name that has a name there."""
        names = {**NAMES, **self.names}
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        inner = name if block is None else block[2]
        module = max((m for m in names if f"{inner}.".startswith(f"{m}.")), key=len)
        theirs = names[module] + inner[len(module) :]
        return theirs if block is None else f"{self.blocks}.{block[1]}.{theirs}"


def _settled(config: ModelConfig) -> ModelConfig:
    """Return the settings as classes have them that decide by each text's length: beyond the
    original context, our texts all have the long factors of longrope."""
    scaling = config.rope_scaling
    if scaling is None or not scaling.long_in(config.seq_len):
        return config
    return replace(config, rope_scaling=replace(scaling, short_factors=scaling.long_factors))


def _same(value: Any) -> Any:
    return value


def _alike(one: Any, other: Any) -> bool:
    """Return whether two values are equal, or numbers of which one was computed from the other."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)


def _computed(config: ModelConfig) -> Iterator[tuple[str, Any]]:
    """Yield the settings that a class must have, by path. Heads and scales without settings are
    usual ones."""
    usual = {"heads": Heads(), "scales": Scales()}
    for name in (each.name for each in dataclasses.fields(config)):
        value = getattr(config, name)
        if name in usual:
            part = value or usual[name]
            yield from ((f"{name}.{path}", each) for path, each in vars(part).items())
        elif name not in _FREE:
            yield name, value


def _taken(hf_state: State, rows: Sequence[Rows]) -> Tensor:
    """Take rows of tensors: whole tensors stacked, and parts of tensors one after the other. Raises
    BadInput if a tensor is missing or differs."""
    parts: list[Tensor] = []
    for name, first, last in rows:
        if name not in hf_state:
            raise BadInput(f"the weights have no {name}")
        part = hf_state[name] if last is None else hf_state[name][first:last]
        parts.append(part)
        if part.shape != parts[0].shape:
            like = f"{rows[0].name}: {tuple(parts[0].shape)}"
            raise BadInput(f"{name} has shape {tuple(part.shape)}, unlike {like}")
    if len(parts) == 1:
        return parts[0]
    return torch.stack(parts) if rows[0].last is None else torch.cat(parts)
