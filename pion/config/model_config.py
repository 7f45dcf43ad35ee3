"""The settings of a decoder: everything that decides its weights' shapes and its maths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_type_hints

from pion.config.draft import Draft
from pion.config.part_fields import FeedForwardPart, Part, check_fields, is_number, is_whole
from pion.config.parts import (
    Experts,
    Heads,
    Role,
    RopeScaling,
    Scales,
    Values,
    Windows,
    Wiring,
    build_part,
)
from pion.config.presets import FAMILIES, PRESETS
from pion.config.primitives import Primitives
from pion.config.slots import Slots
from pion.errors import BadInput
from pion.later_fields import closest, from_fields, later_field, shown, to_record, values_before


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder's settings. Raises BadInput for values that no model can have.

    Declare a field that you add with `later_field` (later_fields.py), so that runs stay valid.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    """Key/value heads; each serves n_heads / n_kv_heads consecutive query heads."""
    d_ff: int
    vocab_size: int
    """Embedding rows; may exceed the number of ids that the tokenizer produces."""
    seq_len: int
    """The longest sequence the model reads, in tokens."""
    head_dim: int = None  # type: ignore[assignment]  # filled in by __post_init__
    """Width of one head; d_model / n_heads unless given."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    softcap: float | None = None
    """Attention scores s become softcap * tanh(s / softcap), in training and inference alike."""
    tie_embeddings: bool = True
    init_std: float = 0.02
    family: str = "pion"
    experts: Experts | None = later_field(None, before=None)
    windows: Windows | None = later_field(None, before=None)
    heads: Heads | None = later_field(None, before=None)
    wiring: Wiring | None = later_field(None, before=None)
    values: Values | None = later_field(None, before=None)
    primitives: Primitives | None = later_field(None, before=None)
    rope_scaling: RopeScaling | None = later_field(None, before=None)
    scales: Scales | None = later_field(None, before=None)
    activation: Literal["swiglu", "geglu", "relu2", "gelu", "gelu_tanh"] = later_field(
        "swiglu", before="swiglu"
    )
    """Of feed-forward layers that are not experts. geglu: as swiglu, but with GELU by tanh in the
    gate. relu2 and gelu: two matrices, and relu(x)² or the exact GELU between. gelu_tanh: as gelu,
    but GELU by tanh. Only imports set this."""
    positions: Literal["rotary", "learned"] = later_field("rotary", before="rotary")
    """learned: a table with a vector for each position, which is added to the embeddings."""
    feedforward_bias: bool = later_field(False, before=False)
    """Whether the matrices of a feed-forward layer have biases. Only imports set this."""
    imported: bool = later_field(False, before=False)
    """Whether the model is from a folder of transformers. An export then keeps the embedding rows
    of ids that the tokenizer can't produce: the model's authors chose the number of rows, and other
    programs may count on it. Checkpoints record this, so training keeps all rows too."""
    came_as: str | None = later_field(None, before=None)
    """The model type that an imported model had, if it would be exported as another without this.
    After the type of a model of text and images and a slash, it is that of the text part. Only
    imports set this."""
    gates: bool = later_field(False, before=False)
    """Whether blocks have gates that learn which tokens need no feed-forward layer."""
    draft: Draft | None = later_field(None, before=None)
    slots: Slots | None = later_field(None, before=None)
    norm_gain: bool = later_field(True, before=True)
    """Whether norms have a learned gain."""
    norm_offset: bool = later_field(False, before=False)
    """Whether norms multiply by 1 plus their weight. Only imports set this."""
    norm: Literal["rms", "layer", "centred"] = later_field("rms", before="rms")
    """What norms of hidden states compute: RMSNorm; LayerNorm with a bias; or LayerNorm without.
    Heads and value tables have RMSNorm. Only imports set this."""
    parallel: Literal["no", "one norm", "two norms"] = later_field("no", before="no")
    """Whether feed-forward layers read what attention reads, by the same norm or by one of their
    own. Only imports set this."""
    norms: Literal["before", "after", "both"] = later_field("before", before="before")
    """Where a layer has norms: of its input, of what it adds to the residual stream, or of both."""
    logit_cap: float | None = later_field(None, before=None)
    """The head's results z become cap · z / sqrt(z² + cap²)."""
    logit_cap_kind: Literal["root", "tanh"] = later_field("root", before="root")
    """tanh: they become cap · tanh(z / cap). Only imports set this."""
    head_multiple: int = later_field(1, before=1)
    """The rows of an untied head are rounded up to a multiple of this."""
    init: Literal["normal", "zero_outputs", "uniform"] = later_field("normal", before="normal")
    """How the initial weights are drawn; see pion/model/parameters.py."""

    def __post_init__(self) -> None:
        for name, kind in PARTS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, build_part(kind, getattr(self, name), name))
        integers = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "seq_len")
        for name in (*integers, "head_multiple"):
            self._require_positive(name, int)
        if self.head_dim is None:
            if self.d_model % self.n_heads:
                raise BadInput(
                    f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}: "
                    f"change one of them or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        self._require_positive("head_dim", int)
        if self.head_dim % 2 and self.positions == "rotary":
            raise BadInput(f"head_dim {self.head_dim} is odd: rotary positions need pairs")
        if self.n_heads % self.n_kv_heads:
            raise BadInput(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        caps = [name for name in ("softcap", "logit_cap") if getattr(self, name) is not None]
        for name in ("rope_theta", "norm_eps", "init_std", *caps):
            self._require_positive(name, int | float)
        check_fields(self)
        for _, part in self.parts():
            part.check(self)
        names = "none" if self.came_as is None else self.came_as
        if not isinstance(names, str) or not names.replace("/", "").isidentifier():
            raise BadInput(f"came_as is {shown(self.came_as)}; it must be a model type")
        if self.feedforward_bias and self.feedforward != "dense":
            raise BadInput("feedforward_bias: only dense feed-forward layers have biases")
        if self.family not in list(FAMILIES):  # a record's may be a dict, which has no hash
            raise BadInput(f"unknown family {shown(self.family)}{closest(self.family, FAMILIES)}")

    def _require_positive(self, name: str, kind: type | UnionType) -> None:
        value: Any = getattr(self, name)
        fits = is_whole(value) if kind is int else is_number(value)
        if not fits or value <= 0:
            number = "whole number" if kind is int else "number"
            raise BadInput(f"{name} is {shown(value)}; it must be a {number} above 0")

    @property
    def attention_layers(self) -> Sequence[int]:
        """The layers that have attention."""
        layers = None if self.wiring is None else self.wiring.attention_layers
        return range(self.n_layers) if layers is None else layers

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Yield the settings of each part that the model has, with the name of its field."""
        for name in PARTS:
            part: Part | None = getattr(self, name)
            if part is not None:
                yield name, part

    @property
    def came_from(self) -> list[str]:
        """The parts of `came_as`, the whole first."""
        return self.came_as.split("/") if self.came_as else []

    @property
    def gated(self) -> bool:
        """Whether dense feed-forward layers have a gate."""
        return self.activation in ("swiglu", "geglu")

    @property
    def hides(self) -> bool:
        """Whether a token may not see all tokens before it."""
        return any(part.hides for _, part in self.parts())

    def hides_in(self, tokens: int) -> bool:
        """Return whether a token may not see all tokens before it in a row of so many tokens."""
        return any(part.hides_in(tokens) for _, part in self.parts())

    @property
    def alone(self) -> ModelConfig:
        """The model without the parts that learn from it and change nothing in it."""
        without: dict[str, Any] = dict.fromkeys(APART)
        return dataclasses.replace(self, **without)

    def check_frozen(self, base: ModelConfig) -> None:
        """Raise BadInput if LoRA, which adapts a model `base`, would have to train a part."""
        for name, part in self.parts():
            part.check_frozen(getattr(base, name), self)

    @property
    def feedforward(self) -> str:
        """The part that computes the feed-forward layers (FEEDFORWARD), or "dense"."""
        return next((name for name in FEEDFORWARD if getattr(self, name) is not None), "dense")

    @property
    def feedforward_part(self) -> FeedForwardPart | None:
        """The settings of the part that computes the feed-forward layers; None: they are dense."""
        return getattr(self, self.feedforward, None)

    @property
    def packed(self) -> bool:
        """Whether some weights are packed, as in a published model. Then they can't be trained."""
        part = self.feedforward_part
        return part is not None and part.packed

    @property
    def mixed(self) -> bool:
        """Whether the matrices of layers are mixed of weights that layers share."""
        return any(part.mixed for _, part in self.parts())

    def entries(self, tokens: int) -> int:
        """Return how many entries blocks compute of a row of so many tokens, those of parts too."""
        return tokens + sum(part.entries(tokens) for _, part in self.parts())

    @property
    def head_rows(self) -> int:
        """The rows of the head. Rows beyond `vocab_size` are trained, and never predicted."""
        if self.tie_embeddings:
            return self.vocab_size
        return -(-self.vocab_size // self.head_multiple) * self.head_multiple

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """Return the named preset (pion/config/presets.py) with some fields replaced.

        Raises BadInput for an unknown preset or field.
        """
        if name not in PRESETS:
            raise BadInput(
                f"unknown model preset {name!r}{closest(name, PRESETS)}; "
                f"the presets are {', '.join(PRESETS)}"
            )
        _require_layers_named(name, overrides)
        preset = PRESETS[name]
        changed = {
            part: preset[part] | overrides[part]
            for part in PARTS
            if isinstance(overrides.get(part), dict) and preset.get(part) is not None
        }
        return cls.of(preset | overrides | changed)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a checkpoint records them; see later_fields.py."""
        return to_record(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ModelConfig:
        """Return the settings that `to_dict` recorded, by this version or by an older one.

        Raises BadInput for an unknown or a missing field.
        """
        return cls.of(values_before(cls) | record)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> ModelConfig:
        """Return these settings, with defaults for all others.

        Raises BadInput for an unknown or a missing field.
        """
        return from_fields(cls, fields)


# The kinds of parts, by the name of the field in ModelConfig.
PARTS: dict[str, type[Part]] = {
    name: kind
    for name, hint in get_type_hints(ModelConfig).items()
    for kind in get_args(hint)
    if isinstance(kind, type) and issubclass(kind, Part)
}
# The parts that compute feed-forward layers, the last field first. The first that a model has
# computes its layers, and may read the others.
FEEDFORWARD = [name for name in reversed(PARTS) if issubclass(PARTS[name], FeedForwardPart)]
# By part, the fields that name layers by their numbers.
NUMBERED_LAYERS = {name: kind.numbered for name, kind in PARTS.items() if kind.numbered}
# The parts that learn from the model and change nothing in it, and the roles of their weights.
APART = tuple(name for name, kind in PARTS.items() if kind.apart)
APART_ROLES: frozenset[Role] = frozenset(
    role for role in get_args(Role) if any(role in PARTS[name].roles for name in APART)
)
OTHER_ROLES: frozenset[Role] = frozenset(get_args(Role)) - APART_ROLES
# What an evaluation measures of a part alone, by part.
RESULTS = {name: kind.result for name, kind in PARTS.items() if kind.result is not None}
# Fields whose value None means that the model is without it.
OPTIONAL = frozenset(
    field.name for field in dataclasses.fields(ModelConfig) if field.default is None
)


def _require_layers_named(preset: str, overrides: dict[str, Any]) -> None:
    """Raise BadInput for another number of layers alone, if the preset's parts name layers."""
    n_layers, usual = overrides.get("n_layers"), PRESETS[preset]["n_layers"]
    kept: list[str] = []
    for part, fields in NUMBERED_LAYERS.items():
        own, given = PRESETS[preset].get(part) or {}, overrides.get(part, {})
        if isinstance(given, dict):  # else it replaces the preset's
            kept += [f"{part}.{name}" for name in fields if own.get(name) and name not in given]
    if kept and n_layers not in (None, usual):
        raise BadInput(
            f"n_layers {n_layers}: the preset {preset} names some of its {usual} layers in "
            f"{', '.join(kept)}. Give these too"
        )
