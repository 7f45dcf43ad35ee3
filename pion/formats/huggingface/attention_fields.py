"""What a config.json says about positions and windows of attention, as our settings.

Rotary positions have two spellings. transformers 5 writes one object, `rope_parameters`.
transformers 4 wrote `rope_theta` and, for scaled positions, the object `rope_scaling`. If a config
has both objects, transformers reads `rope_scaling`. A value in an object comes before one outside
it. A class with another base for layers with a window has an object for each of its two kinds of
layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pion.config.model_config import ModelConfig
from pion.config.part_fields import is_number, is_whole, require_whole
from pion.config.parts import Heads, RopeScaling
from pion.errors import BadInput
from pion.formats.huggingface.architecture import Fields, require
from pion.later_fields import shown
from pion.model.parameters import MOST_LAYERS

DEFAULT_THETA = 10_000.0
FULL, SLIDING = "full_attention", "sliding_attention"
_ORIGINAL, _SHARE = "original_max_position_embeddings", "partial_rotary_factor"
_AMPLITUDE = {"attention_factor": "amplitude"}
# The fields of each kind of scaled positions, and our names of them.
_KINDS: Mapping[str, Mapping[str, str]] = {
    "llama3": {name: name for name in ("low_freq_factor", "high_freq_factor", _ORIGINAL)},
    "linear": {},
    "yarn": {name: name for name in ("beta_fast", "beta_slow", _ORIGINAL)}
    | {"truncate": "whole_dims", **_AMPLITUDE},
    "longrope": {
        "short_factor": "short_factors",
        "long_factor": "long_factors",
        _ORIGINAL: _ORIGINAL,
        **_AMPLITUDE,
    },
}
# Those that a config must have.
_NEEDED = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "linear": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
# Phi-3's first name of longrope. Dynamic scaling changes nothing within the context.
_OTHER_NAMES = {"su": "longrope", "dynamic": "default"}


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """The rotary positions of a class.

    Attributes:
        kinds: those that it can have.
        theta: the base that it has without a field.
        window: of layers with a window: the field outside of objects, and the base without it.
        names: fields outside of objects with other names in transformers 4, by these names.
        more: fields of scaled positions that this class alone has, and our names of them.
        share: the share of a head that rotates without a field; None: the class rotates all of it.
    """

    kinds: tuple[str, ...] = ("default", *_KINDS)
    theta: float = DEFAULT_THETA
    window: tuple[str, float] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)
    share: float | None = None

    def read(self, hf_config: Fields) -> dict[str, Any]:
        """Return settings by path. Raises KeyError for a missing field, and BadInput."""
        hf_config = {self.names.get(name, name): value for name, value in hf_config.items()}
        objects = _rotary_object(hf_config, by_layers=self.window is not None)
        rope = objects.get(FULL) or {n: v for n, v in objects.items() if n != SLIDING}
        share = _first(*(where.get(_SHARE) for where in (rope, hf_config)), self.share, 1)
        theta = _first(rope.get("rope_theta"), hf_config.get("rope_theta"), self.theta)
        fields: dict[str, Any] = {"rope_theta": theta}
        if self.share is None:
            require({_SHARE: share}, _SHARE, (1,))
        else:
            fields["heads.rotary_share"] = share
        if self.window is not None:
            sliding, (name, default) = objects.get(SLIDING) or {}, self.window
            require({"rope_type": _kind(sliding)}, "rope_type", ("default",))
            theta = _first(sliding.get("rope_theta"), hf_config.get(name), default)
            fields["windows.rope_theta"] = theta
        kind = _kind(rope)
        require({"rope_type": kind}, "rope_type", self.kinds)
        return fields if kind == "default" else fields | self._scaling(kind, rope, hf_config)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Return the fields.

        Settings that are not the defaults are written in both spellings: transformers 4 and other
        programs that only know the older one would compute something else without a word.
        """
        theta, scaling = config.rope_theta, config.rope_scaling
        rope: dict[str, Any] = {"rope_type": "default"}
        fields: dict[str, Any] = {} if theta == self.theta else {"rope_theta": theta}
        if scaling is not None:
            scaling_fields = (
                (name, getattr(scaling, our)) for name, our in self._names(scaling.kind)
            )
            rope = {"rope_type": scaling.kind, "factor": scaling.factor}
            rope |= {
                n: list(v) if isinstance(v, tuple) else v
                for n, v in scaling_fields
                if v is not None
            }
            # transformers reads the context of longrope from outside the object.
            outside = {_ORIGINAL: rope[_ORIGINAL]} if scaling.kind == "longrope" else {}
            fields |= {"rope_theta": theta, "rope_scaling": rope, **outside}
        if self.share is not None:
            share = (config.heads or Heads()).rotary_share
            rope[_SHARE] = share
            fields |= {} if share == self.share else {_SHARE: share}
        full: dict[str, Any] = {"rope_theta": theta, **rope}
        if self.window is None:
            return {"rope_parameters": full, **fields}
        name, default = self.window
        own_theta = None if config.windows is None else config.windows.rope_theta
        sliding = {"rope_type": "default", "rope_theta": own_theta or default}
        fields |= {} if name == "rope_theta" else {name: sliding["rope_theta"]}
        return {"rope_parameters": {FULL: full, SLIDING: sliding}, **fields}

    def _scaling(self, kind: str, rope: Fields, hf_config: Fields) -> dict[str, Any]:
        """Return the settings of scaled positions. Raises KeyError and BadInput."""
        missing = [name for name in _NEEDED.get(kind, ()) if rope.get(name) is None]
        if missing:
            raise BadInput(
                f"config.json: rotary positions of type {kind} need {', '.join(missing)}"
            )
        context, factor = hf_config["max_position_embeddings"], rope.get("factor")
        original = _first(hf_config.get(_ORIGINAL), rope.get(_ORIGINAL), context)
        if kind == "linear":
            original = 1  # nothing depends on it, so that a shorter context changes no setting
        both = [rope.get(name) or 1 for name in ("mscale", "mscale_all_dim")]
        if not all(
            is_number(each, above=0) for each in (context, original, _first(factor, 1), *both)
        ):
            raise BadInput(f"config.json: rotary positions of type {kind} need numbers above 0")
        factor = max(1.0, context / original) if factor is None else factor
        named = ((our, rope.get(name)) for name, our in self._names(kind))
        values = {our: value for our, value in named if value is not None}
        values |= {"kind": kind, "factor": factor, _ORIGINAL: original}
        if kind == "yarn" and rope.get("mscale") and rope.get("mscale_all_dim"):
            one, other = (0.1 * each * math.log(factor) + 1 for each in both)
            values = {"amplitude": one / other} | values
        if kind == "longrope":
            amplitude = math.sqrt(1 + math.log(max(factor, 1)) / math.log(max(original, 2)))
            values = {"amplitude": amplitude} | values
        scaling = RopeScaling(**values)
        fields: dict[str, Any] = {"rope_scaling": scaling}
        if scaling.short_factors != scaling.long_factors:
            fields["seq_len"] = min(context, original)  # the context of the short factors
        return fields

    def _names(self, kind: str) -> Iterable[tuple[str, str]]:
        return {**_KINDS[kind], **self.more}.items()


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Which layers of a class see only recent tokens, and which have rotary positions.

    transformers' window counts the token itself, as ours does in blocks of one token.

    Attributes:
        windows: whether `sliding_window` counts in "all" layers or in those of its `layer_types`;
            "no": windows need `use_sliding_window`.
        full_every: without `layer_types`, every so many layers one sees everything; 0: none.
        recurrent: whether layers are recurrent without `layer_types`, and none has a window.
        unrotated: the layers without rotary positions: those of `no_rope_layers`, or those
            that see everything next to "windows".
    """

    windows: Literal["no", "all", "types"] = "no"
    full_every: int = 0
    recurrent: bool = False
    unrotated: Literal["none", "no_rope_layers", "windows"] = "none"

    def read(self, hf_config: Fields, theta: float | None) -> dict[str, Any]:
        """Return settings by path; `theta` is the own base of layers with a window.

        Raises KeyError for a missing field, and BadInput.
        """
        layers, context = hf_config["num_hidden_layers"], hf_config["max_position_embeddings"]
        kinds = self._kinds(hf_config, layers)
        fields: dict[str, Any] = {}
        if self.unrotated == "no_rope_layers":
            rotated = hf_config.get("no_rope_layers") or _every(
                hf_config.get("no_rope_layer_interval", 4), layers, False, True
            )
            every = enumerate(_of_layers("no_rope_layers", rotated, layers))
            fields["heads.unrotated_layers"] = [layer for layer, rotates in every if not rotates]
        if self.windows == "no":
            require(hf_config, "use_sliding_window", (False,))
            return fields
        window = hf_config.get("sliding_window")
        full = [layer for layer, kind in enumerate(kinds) if kind == FULL]
        if self.unrotated == "windows" and window is not None:
            fields["heads.unrotated_layers"] = full
        alike = theta is None and self.unrotated != "windows"
        sizes = is_whole(window) and is_whole(context)
        if window is None or len(full) == len(kinds) or (alike and sizes and window >= context):
            return fields  # a window of the whole context hides nothing
        fields |= {"windows.tokens": window, "windows.block": 1, "windows.full_layers": full}
        return fields | ({} if theta is None else {"windows.rope_theta": theta})

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Return the fields."""
        layers, windows = range(config.n_layers), config.windows
        unrotated = (config.heads or Heads()).unrotated_layers
        fields: dict[str, Any] = {}
        if self.unrotated == "no_rope_layers":
            fields["no_rope_layers"] = [int(layer not in unrotated) for layer in layers]
        if self.windows == "all":
            fields["sliding_window"] = None if windows is None else windows.tokens
        elif self.windows == "types":
            full = layers if windows is None else windows.full_layers or ()
            # Ministral's class in transformers 5.17 fails without a window.
            none = None if self.unrotated == "windows" else config.seq_len
            if not self.recurrent:
                fields["sliding_window"] = none if windows is None else windows.tokens
            fields["layer_types"] = [FULL if layer in full else SLIDING for layer in layers]
        return fields

    def _kinds(self, hf_config: Fields, layers: int) -> list[str]:
        """Return the kind of each layer. Raises BadInput for a kind that we do not compute."""
        kinds, window = hf_config.get("layer_types"), hf_config.get("sliding_window")
        # Before there is a list with a value for each layer.
        require_whole("config.json: num_hidden_layers", layers, 1, MOST_LAYERS)
        if kinds is None and self.recurrent:
            raise BadInput("config.json has no layer_types, so its layers are recurrent")
        if kinds is not None:
            computable = (FULL,) if self.windows == "no" or self.recurrent else (FULL, SLIDING)
            named = _of_layers("layer_types", kinds, layers)
            kinds = [FULL if kind == "attention" else kind for kind in named]
            for other in (kind for kind in kinds if kind not in computable):
                raise BadInput(
                    f"config.json: layer_types has {shown(other)} in {kinds.count(other)} of "
                    f"{layers} layers; only {' and '.join(map(repr, computable))} can be computed"
                )
        if kinds is None or self.windows == "all":
            every = self.full_every and (hf_config.get("sliding_window_pattern") or self.full_every)
            plain = self.windows == "no" or window is None
            return [FULL] * layers if plain else _every(every, layers, FULL, SLIDING)
        return kinds


def _kind(rope: Fields) -> Any:
    kind = rope.get("rope_type", rope.get("type", "default"))
    return _OTHER_NAMES.get(kind, kind) if isinstance(kind, str) else kind


def _first(*values: Any) -> Any:
    """Return the first value that is there."""
    return next(value for value in values if value is not None)


def _every(count: Any, layers: int, then: Any, else_: Any) -> list[Any]:
    """Return what each layer has: `then` in every layer with the number `count`, from 1."""
    if not is_whole(count) or count < 0:
        raise BadInput(f"config.json: {shown(count)} is no number of layers; give layer_types")
    return [then if count and (layer + 1) % count == 0 else else_ for layer in range(layers)]


def _of_layers(name: str, values: Any, layers: int) -> list[Any]:
    """Return a list with a value for each layer. Raises BadInput for anything else."""
    if not isinstance(values, list) or len(values) != layers:
        raise BadInput(f"config.json: {name} must be a list with a value for each layer")
    return values


def _rotary_object(hf_config: Fields, *, by_layers: bool) -> Mapping[str, Any]:
    """Return the object with rotary settings, {} if there is none. Raises BadInput for others.

    If a class has an object for each of its kinds of layers, `by_layers`, transformers 4 wrote one
    for those that see everything.
    """
    for name in ("rope_scaling", "rope_parameters"):
        rope = hf_config.get(name)
        if rope in (None, {}):
            continue
        if not isinstance(rope, Mapping):
            raise BadInput(f"config.json: {name} is {shown(rope)}; it must be an object")
        for inner, value in rope.items():
            if isinstance(value, Mapping) and not (by_layers and inner in (FULL, SLIDING)):
                raise BadInput(
                    f"config.json: {name} has settings for {shown(inner)} alone; only settings "
                    "for all layers are supported"
                )
        return rope
    return {}
