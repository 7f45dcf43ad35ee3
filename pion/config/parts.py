"""The optional parts of a decoder. A model without any part is a Pion: dense, with full attention.

A part is a small record of settings. Its maths is in pion/model. No code asks for a family's name:
a family is a preset that names parts, and any mixture of parts is a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from pion.config.part_fields import (
    FACTOR,
    LAYERS,
    ROW_BYTES,
    SEQ_LEN,
    WIDTH,
    Core,
    FeedForwardPart,
    Part,
    check_fields,
    is_number,
    later_setting,
    layer_numbers,
    require_list,
    require_weight,
    setting,
)
from pion.errors import BadInput
from pion.later_fields import from_fields, later_field, shown, values_before

Settings = TypeVar("Settings", bound=Part)


@dataclass(frozen=True, kw_only=True)
class Experts(FeedForwardPart):
    """A mixture of experts in place of each feed-forward layer.

    A router sends each token to `top_k` of `n` experts of width `d_ff`, and weighs their results by
    its probabilities, which are rescaled to add up to 1. No token is dropped. In addition, every
    token goes through `shared` experts of width `d_shared`.
    """

    about: ClassVar = (
        "a mixture of experts in place of each feed-forward layer; d_ff is one expert's width"
    )
    roles: ClassVar = ("router",)

    n: int = setting("routed experts in a layer", most=4096)
    top_k: int = setting("routed experts that a token uses", 2, most=4096)
    shared: int = setting("experts that every token uses", 1, least=0, most=4096)
    d_shared: int = setting("width of one shared expert", 0, least=0, most=WIDTH)
    balance_weight: float = setting(
        "weight of the loss that spreads tokens over experts", 0.01, most=FACTOR
    )
    z_weight: float = setting(
        "weight of the loss that keeps the router's logits small", 0.001, most=FACTOR
    )
    # What the balance is computed over. The seed's is "batch", which depends on how a batch is cut.
    balance: Literal["row", "batch"] = "row"

    def __post_init__(self) -> None:
        check_fields(self, "experts.")
        if self.shared and not self.d_shared:
            raise BadInput(
                "experts.d_shared: give the width of the shared experts, or set experts.shared to 0"
            )
        if self.top_k > self.n:
            raise BadInput(f"experts.top_k {self.top_k} is more than experts.n {self.n}")
        for name in ("balance_weight", "z_weight"):
            require_weight(f"experts.{name}", getattr(self, name))

    def one_choice(self, stage: str, top_ks: Sequence[int | None]) -> str | None:
        """Return why a router with a single choice learns nothing."""
        if self.top_k != 1 or self.n == 1:
            return None
        return (
            "model.experts.top_k: 1: a token's only expert always has the weight 1, so the loss "
            "teaches the router nothing. Nothing was started. Use at least 2."
        )

    def check(self, model: Core) -> None:
        """Raise BadInput for widths that grouped products of bf16 elements can't have."""
        if model.feedforward != "experts":
            return  # experts of another part have no grouped products
        if 2 * model.d_ff % ROW_BYTES or 2 * model.d_model % ROW_BYTES:
            raise BadInput(
                f"d_ff {model.d_ff} and d_model {model.d_model} must be multiples of "
                f"{ROW_BYTES // 2} in a model with experts: grouped products need rows of a "
                f"multiple of {ROW_BYTES} bytes"
            )

    def modules(self, model: Core) -> int:
        """Return the number of shared experts. The others are stacked in a layer's tensors."""
        return self.shared

    def least_elements(self, model: Core) -> Iterator[tuple[str, int]]:
        """Yield the sizes of the largest tensors that the experts need."""
        yield "experts × d_ff × d_model", self.n * model.d_ff * model.d_model
        if self.shared:
            yield "experts.d_shared × d_model", self.d_shared * model.d_model


@dataclass(frozen=True, kw_only=True)
class Windows(Part):
    """Attention that sees only recent tokens: far in some layers, half as far in the others.

    A window is a number of blocks of the row, and ends with the block of the query. With blocks of
    one token it has exactly `tokens` tokens, the query's included, as in transformers.
    """

    about: ClassVar = "attention that sees only recent tokens"
    numbered: ClassVar = ("full_layers",)
    hides: ClassVar = True

    tokens: int = setting("tokens that a layer with a long window sees", most=SEQ_LEN)
    block: int = setting("tokens in a block", 128, most=SEQ_LEN)
    long_every: int = setting(
        "layers 0, long_every, 2 · long_every … and the last have the long window, and all others "
        "have half of it",
        4,
        most=LAYERS,
    )
    full_layers: tuple[int, ...] | None = later_setting(
        "layers that see everything; others have the long window; unset: as long_every says",
        None,
        before=None,
        most=LAYERS,
    )
    rope_theta: float | None = later_setting(
        "base of rotary frequencies of layers with a window, unscaled; unset: model.rope_theta",
        None,
        before=None,
        most=10**12,
    )

    def __post_init__(self) -> None:
        check_fields(self, "windows.")
        theta = self.rope_theta
        if theta is not None and not is_number(theta, above=0):
            raise BadInput(f"windows.rope_theta is {shown(theta)}; it must be a number above 0")
        if self.full_layers is not None:
            layers = layer_numbers("windows.full_layers", self.full_layers)
            object.__setattr__(self, "full_layers", layers)
        if self.tokens % self.block:
            raise BadInput(
                f"windows.tokens {self.tokens} is not a multiple of windows.block {self.block}"
            )

    def check(self, model: Core) -> None:
        """Raise BadInput for layers that the model does not have."""
        _require_layers("windows", self.full_layers or (), model)

    def hides_in(self, tokens: int) -> bool:
        """Return whether a row of so many tokens is longer than the shorter window."""
        blocks = self.tokens // self.block // (2 if self.full_layers is None else 1)
        return max(1, blocks) * self.block < tokens

    def card(self) -> tuple[str, str]:
        """Return how far a token sees."""
        if self.full_layers is not None:
            full = f", but not in layers {', '.join(map(str, self.full_layers))}"
            return "attention window", f"{self.tokens:,} tokens" + (
                full if self.full_layers else ""
            )
        return "attention window", (
            f"{self.tokens:,} tokens in the last and in every {self.long_every}th layer, half in "
            "the others"
        )


@dataclass(frozen=True, kw_only=True)
class Heads(Part):
    """Attention heads that differ from a Pion's in their scale, norms, biases or positions."""

    about: ClassVar = (
        "attention heads with another scale, other norms, biases or fewer rotary frequencies"
    )
    numbered: ClassVar = ("unrotated_layers",)

    scale: float | None = setting("factor of the scores; unset: head_dim^-0.5", None, most=FACTOR)
    value_norm: bool = setting("normalize the values of each head too", False)
    rotary: Literal["full", "half"] = setting(
        "half: only the first half of the rotary frequencies, spaced linearly from 1 to "
        "1 / rope_theta; the others are 0",
        "full",
    )
    qk_norm: bool = later_setting("normalize queries and keys", True, before=True)
    qkv_bias: bool = later_setting("add a bias to queries, keys and values", False, before=False)
    whole_norm: bool = later_setting("normalize over all heads together", False, before=False)
    unrotated_layers: tuple[int, ...] = later_setting(
        "layers without rotary positions", (), before=(), most=LAYERS
    )
    rotary_share: float = later_setting(
        "share of each head's dimensions that rotate", 1.0, before=1.0, most=1
    )
    # Only imports set these: a bias of the output, and rotations of neighbours instead of halves.
    output_bias: bool = later_field(False, before=False)
    rotary_pairs: bool = later_field(False, before=False)

    def __post_init__(self) -> None:
        if self.scale is not None and not is_number(self.scale, above=0):
            raise BadInput(f"heads.scale is {shown(self.scale)}; it must be a number above 0")
        check_fields(self, "heads.")
        if self.whole_norm and not self.qk_norm:
            raise BadInput("heads.whole_norm: with qk_norm false, nothing is normalized")
        layers = layer_numbers("heads.unrotated_layers", self.unrotated_layers)
        object.__setattr__(self, "unrotated_layers", layers)
        share = self.rotary_share
        if not is_number(share, above=0) or share > 1:
            raise BadInput(
                f"heads.rotary_share is {shown(share)}; it must be a number above 0, up to 1"
            )

    def check(self, model: Core) -> None:
        """Raise BadInput for heads too narrow for their rotary frequencies, and for layers that the
        model does not have."""
        if self.rotary == "half" and model.head_dim % 4:
            raise BadInput(
                f"heads.rotary: half needs a multiple of 4, not head_dim {model.head_dim}"
            )
        width = self.rotary_width(model.head_dim)
        if self.rotary_share < 1 and (width < 2 or width % 2 or self.rotary == "half"):
            raise BadInput(
                f"heads.rotary_share {self.rotary_share} of head_dim {model.head_dim} is {width} "
                "dimensions; give a share of an even number of them, and no heads.rotary"
            )
        _require_layers("heads", self.unrotated_layers, model)

    def rotary_width(self, head_dim: int) -> int:
        """Return how many dimensions of a head rotate."""
        return int(head_dim * self.rotary_share)


@dataclass(frozen=True, kw_only=True)
class Wiring(Part):
    """How layers are connected: which have attention, and what they read besides the last layer."""

    about: ClassVar = "which layers have attention, and what layers read besides the layer before"
    numbered: ClassVar = ("attention_layers", "skips")

    attention_layers: tuple[int, ...] | None = setting(
        "layers with attention; unset: all", None, most=LAYERS
    )
    attention_norm: bool = setting("normalize the input of attention", True)
    embed_norm: bool = setting("normalize the embeddings", False)
    input_mix: bool = setting("let each layer mix the embeddings into its input", False)
    skips: tuple[tuple[int, int], ...] = setting(
        "pairs [to, from]: the result of layer `from` is added to the input of layer `to`",
        (),
        most=LAYERS,
    )

    def __post_init__(self) -> None:
        check_fields(self, "wiring.")
        layers = self.attention_layers
        if layers is not None:
            layers = layer_numbers("wiring.attention_layers", layers)
            if not layers:
                raise BadInput("wiring.attention_layers is empty: some layer must have attention")
            object.__setattr__(self, "attention_layers", layers)
        skips = tuple(
            layer_numbers("wiring.skips", pair) for pair in require_list("wiring.skips", self.skips)
        )
        for pair in skips:
            if len(pair) != 2:
                raise BadInput(
                    f"wiring.skips has {shown(list(pair))}; each skip is a pair [to, from]"
                )
            to, source = pair
            if source >= to:
                raise BadInput(
                    f"wiring.skips: layer {to} can't read layer {source}, which is computed later"
                )
        if len({to for to, _ in skips}) < len(skips):
            raise BadInput("wiring.skips: a layer can have only one skip")
        object.__setattr__(self, "skips", skips)

    def card(self) -> tuple[str, str] | None:
        """Return which layers have attention, if not all have."""
        layers = self.attention_layers
        return None if layers is None else ("layers with attention", ", ".join(map(str, layers)))

    def check(self, model: Core) -> None:
        """Raise BadInput for layers that the model does not have."""
        _require_layers(
            "wiring",
            [*(self.attention_layers or ()), *(layer for pair in self.skips for layer in pair)],
            model,
        )
        if len(self.attention_layers or ()) > model.n_layers:
            raise BadInput("wiring.attention_layers names a layer twice")


@dataclass(frozen=True, kw_only=True)
class Values(Part):
    """Value embeddings: tables with a vector for each token id, which joins attention's values."""

    about: ClassVar = "tables with a vector for each token id, which joins attention's values"
    numbered: ClassVar = ("layers", "tables")

    layers: tuple[int, ...] = setting("layers with a table of value vectors", most=LAYERS)
    tables: tuple[int, ...] | None = setting(
        "the number of the table of each of these layers; unset: a separate table for each",
        None,
        most=LAYERS,
    )
    normed: bool = setting("normalize the vectors of the tables", True)

    def __post_init__(self) -> None:
        check_fields(self, "values.")
        layers = layer_numbers("values.layers", self.layers)
        if not layers or len(set(layers)) < len(layers):
            raise BadInput(
                f"values.layers is {shown(list(layers))}; name at least one layer, each once"
            )
        object.__setattr__(self, "layers", layers)
        if self.tables is None:
            return
        tables = layer_numbers("values.tables", self.tables)
        used = set(tables)
        if len(tables) != len(layers) or used != set(range(len(used))):
            raise BadInput(
                f"values.tables is {shown(list(tables))}; give the number of a table for each of "
                f"{len(layers)} layers, counting from 0 without gaps"
            )
        object.__setattr__(self, "tables", tables)

    def table_of(self) -> dict[int, int]:
        """Return the number of the table of each layer that has one."""
        return dict(zip(self.layers, self.tables or range(len(self.layers))))

    def card(self) -> tuple[str, str]:
        """Return which layers have a table."""
        return "layers with a value table", ", ".join(map(str, self.layers))

    def check(self, model: Core) -> None:
        """Raise BadInput for layers that the model does not have, or that have no attention."""
        _require_layers("values", self.layers, model)
        for layer in self.layers:
            if layer not in model.attention_layers:
                raise BadInput(f"values.layers: layer {layer} has no attention")


@dataclass(frozen=True, kw_only=True)
class Scales(Part):
    """Constant factors of hidden states, as in Granite and Gemma."""

    about: ClassVar = "constant factors of hidden states, as in Granite"

    embeddings: float = setting("factor of the embeddings", 1.0, most=FACTOR)
    residual: float = setting("factor of what layers add to the residual stream", 1.0, most=FACTOR)
    logits: float = setting("factor of the logits, before a cap", 1.0, most=FACTOR)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not is_number(value, above=0):
                raise BadInput(f"scales.{name} is {shown(value)}; it must be a number above 0")


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Part):
    """Rotary positions whose slow frequencies are slowed down further, as in Llama 3.1.

    A frequency that turns less than `low_freq_factor` times in the original context is divided by
    `factor`. One that turns more than `high_freq_factor` times stays. Between the two, the share of
    the original frequency grows linearly with the number of turns. This is the kind "llama3".
    "linear" divides all frequencies. "yarn" has a share that falls with the number of the
    dimension, from where a frequency turns `beta_fast` times to where it turns `beta_slow` times.
    "longrope" has a factor for each frequency. The kinds have their names from transformers. The
    maths is in pion/model/attention/rope.py.
    """

    about: ClassVar = "rotary positions for a longer context than the original one, as in Llama 3.1"

    factor: float = setting("what slow frequencies are divided by, at least 1", most=FACTOR)
    original_max_position_embeddings: int = setting(
        "tokens of the context that the frequencies were made for", most=SEQ_LEN
    )
    low_freq_factor: float = setting(
        "frequencies with fewer turns than this in the original context are divided",
        1.0,
        most=FACTOR,
    )
    high_freq_factor: float = setting(
        "frequencies with more turns than this in the original context stay as they are",
        4.0,
        most=FACTOR,
    )
    # Only imports set these. All but the kind, the amplitude and the growth are of yarn. The
    # amplitude is what cosines and sines are multiplied by; None: 1, or in yarn
    # 0.1 · ln(factor) + 1. A query at a position p, of an original context of n tokens, is
    # multiplied by 1 + growth · ln(1 + ⌊p / n⌋), as in Ministral 3.
    kind: Literal["llama3", "linear", "yarn", "longrope"] = later_field("llama3", before="llama3")
    beta_fast: float = later_field(32.0, before=32.0)
    beta_slow: float = later_field(1.0, before=1.0)
    whole_dims: bool = later_field(True, before=True)
    amplitude: float | None = later_field(None, before=None)
    growth: float = later_field(0.0, before=0.0)
    # What longrope divides each frequency by: the long ones if the model's context is longer than
    # the original one, so that a text has the same positions whatever its length.
    short_factors: tuple[float, ...] = later_field((), before=())
    long_factors: tuple[float, ...] = later_field((), before=())

    def __post_init__(self) -> None:
        low, high = self.low_freq_factor, self.high_freq_factor
        named = {"factor": self.factor, "low_freq_factor": low, "high_freq_factor": high}
        named |= {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow}
        named |= {} if self.amplitude is None else {"amplitude": self.amplitude}
        for name, value in named.items():
            if not is_number(value, above=0):
                raise BadInput(
                    f"rope_scaling.{name} is {shown(value)}; it must be a number above 0"
                )
        if self.factor < 1:
            raise BadInput(f"rope_scaling.factor is {self.factor}; it must be at least 1")
        if high <= low:
            raise BadInput(
                f"rope_scaling.high_freq_factor {high} must be above "
                f"rope_scaling.low_freq_factor {low}"
            )
        require_weight("rope_scaling.growth", self.growth)
        check_fields(self, "rope_scaling.")
        for name in ("short_factors", "long_factors"):
            factors = tuple(require_list(f"rope_scaling.{name}", getattr(self, name)))
            if not all(is_number(factor, above=0) for factor in factors):
                raise BadInput(f"rope_scaling.{name}: each factor must be a number above 0")
            object.__setattr__(self, name, factors)

    def long_in(self, seq_len: int) -> bool:
        """Return whether texts have longrope's long factors in a context of `seq_len` tokens."""
        differ = self.short_factors != self.long_factors
        return differ and seq_len > self.original_max_position_embeddings

    def check(self, model: Core) -> None:
        """Raise BadInput for a model without rotary positions, or with more or fewer of them."""
        count = (model.heads or Heads()).rotary_width(model.head_dim) // 2
        sizes = {len(self.short_factors), len(self.long_factors)}
        if self.kind == "longrope" and sizes != {count}:
            raise BadInput(
                f"rope_scaling.short_factors and long_factors must have {count} numbers each, one "
                "for each rotary frequency"
            )
        if self.kind == "yarn" and model.rope_theta <= 1:
            raise BadInput(f"rope_theta {model.rope_theta}: yarn needs a base above 1")
        if model.positions != "rotary":
            raise BadInput(
                f"rope_scaling: the model's positions are {model.positions}, and only rotary "
                "positions are scaled. Leave out rope_scaling"
            )


def build_part(kind: type[Settings], value: Any, name: str) -> Settings:
    """Return the part that a record or a job describes by its fields.

    Raises BadInput for an unknown or a missing field, or a value that the part can't have.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise BadInput(f"{name} is {shown(value)}; it must be a section with fields")
    return from_fields(kind, values_before(kind) | dict(value), f"{name}.")


def _require_layers(part: str, layers: Sequence[int], model: Core) -> None:
    for layer in layers:
        if layer >= model.n_layers:
            raise BadInput(
                f"{part} names layer {layer}, but the model has {model.n_layers} layers, "
                f"0 to {model.n_layers - 1}"
            )


# What a parameter is for.
Role = Literal[
    "matrix",  # maps hidden states to hidden states
    "router",  # has a row for each expert
    "embedding",  # has a row for each token id
    "head",  # has a row for each token id
    "primitive",  # is shared by layers
    "recipe",  # says which primitives a layer uses
    "gate",  # says which tokens need no feed-forward layer
    "draft",  # guesses tokens
    "vector",  # all else: gains, scalars and the vectors of positions
]
