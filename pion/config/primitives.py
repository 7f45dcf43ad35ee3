"""The part of a model whose feed-forward layers are mixed from shared low-rank primitives.

This is the idea of PILON. Its maths is in pion/model/pilon/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pion.config.part_fields import (
    FACTOR,
    LAYERS,
    ROW_BYTES,
    WIDTH,
    Core,
    FeedForwardPart,
    check_fields,
    layer_numbers,
    require_list,
    require_weight,
    setting,
)
from pion.errors import BadInput
from pion.later_fields import shown

# The matrices of a feed-forward layer, and the banks that they are mixed of, in this order.
WAYS = ("up", "down")


@dataclass(frozen=True, kw_only=True)
class Primitives(FeedForwardPart):
    """Feed-forward layers whose two matrices are mixed from banks of shared low-rank primitives.

    The layers of a band share two banks, one for each matrix. A layer has a recipe for each: logits
    over the primitives, of which the `top_k` largest count, weighted by their softmax. In a model
    with experts, each expert has its own recipes.
    """

    about: ClassVar = "feed-forward layers whose matrices are mixed from shared low-rank primitives"
    roles: ClassVar = ("primitive", "recipe")
    mixed: ClassVar = True
    numbered: ClassVar = ("bands",)

    n: int = setting("primitives in a bank", most=4096)
    rank: int = setting("rank of a primitive", most=WIDTH)
    top_k: int = setting("primitives in a recipe", most=4096)
    bands: tuple[tuple[int, ...], ...] = setting(
        "the layers of each band, for example [[0, 1, 2], [3, 4, 5]]", most=LAYERS
    )
    ternary: bool = setting("give the weights of a primitive three values only: −a, 0 and a", False)
    activation_bits: int = setting(
        "bits to which a ternary bank rounds its normalized input, from 2 to 16; 0: no rounding",
        0,
        least=0,
        most=16,
    )
    sub_norm: bool = setting(
        "normalize the result of a feed-forward layer, or of each expert's recipe", False
    )
    diversity_weight: float = setting(
        "weight of the loss that keeps the recipes of a band apart", 0.0, most=FACTOR
    )
    # What a ternary scale is the mean of, and which maximum rounding is relative to. The seed's
    # vary; ours neither depend on a recipe nor let a token see other tokens.
    ternary_scale: Literal["primitive", "bank", "chosen"] = "primitive"
    activation_scale: Literal["token", "batch"] = "token"
    # The seed mixes a bias with the square root of its weight.
    bias_weight: Literal["exact", "root"] = "exact"
    # Of a published model, whose ternary banks are packed: how many primitives each band stores of
    # its two banks. Primitives that no recipe uses are left out.
    stored: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "primitives.")
        bits = self.activation_bits
        if self.top_k > self.n:
            raise BadInput(f"primitives.top_k {self.top_k} is more than primitives.n {self.n}")
        if bits and not self.ternary:
            raise BadInput("primitives.activation_bits: only a ternary bank rounds its input")
        if bits == 1 or bits > 16:
            raise BadInput(f"primitives.activation_bits is {bits}; it must be 0, or from 2 to 16")
        require_weight("primitives.diversity_weight", self.diversity_weight)
        object.__setattr__(self, "bands", _bands(self.bands))
        if self.stored is not None:
            object.__setattr__(self, "stored", self._checked_stored(self.stored))

    def _checked_stored(self, stored: object) -> tuple[tuple[int, int], ...]:
        pairs = [
            layer_numbers("primitives.stored", pair)
            for pair in require_list("primitives.stored", stored)
        ]
        good = all(len(pair) == 2 and 1 <= min(pair) <= max(pair) <= self.n for pair in pairs)
        if not self.ternary or len(pairs) != len(self.bands) or not good:
            raise BadInput(
                f"primitives.stored is {shown(stored)}; a ternary model has two numbers from 1 to "
                f"{self.n} for each of its {len(self.bands)} bands"
            )
        return tuple((up, down) for up, down in pairs)

    @property
    def levels(self) -> int:
        """The largest whole number to which a bank rounds its input; 0: no rounding."""
        if not self.activation_bits:
            return 0
        # The seed rounds to one number more than fits its bits.
        return 2 ** (self.activation_bits - 1) - (self.activation_scale == "token")

    def band_of(self) -> dict[int, int]:
        """Return the number of the band of each layer."""
        return {layer: number for number, band in enumerate(self.bands) for layer in band}

    @property
    def packed(self) -> bool:
        """Whether the banks are packed."""
        return self.stored is not None

    @property
    def unlike_dense(self) -> str | None:
        """What dense layers can't compute: the norms of ternary banks and of results."""
        return "primitives with norms" if self.ternary or self.sub_norm else None

    @property
    def phase_sizes(self) -> dict[str, int]:
        """The sizes that a phase of training may change, and the largest of each."""
        return {"top_k": self.n, "rank": self.rank}

    def matrices(self, *, multiplied_out: bool) -> str:
        """Say what a layer mixes, and whether a file has the products instead."""
        bits = self.activation_bits
        rounded = f", ternary{f' with {bits}-bit activations' if bits else ''}"
        return (
            f"{self.top_k} of {self.n} shared primitives of rank {self.rank}"
            f"{rounded if self.ternary else ''}; {len(self.bands)} bands share them"
            f"{'; the file has their products' if multiplied_out else ''}"
        )

    @property
    def groups(self) -> int:
        """The number of bands."""
        return len(self.bands)

    def one_choice(self, stage: str, top_ks: Sequence[int | None]) -> str | None:
        """Return why recipes with a single choice learn nothing."""
        if self.n == 1 or max(top_k or self.top_k for top_k in top_ks) != 1:
            return None
        return (
            "model.primitives.top_k: 1: the only primitive of a recipe always has the weight 1, so "
            "the loss teaches the recipes nothing. Nothing was started. Use at least 2, or give "
            f"{stage} a first phase with a larger top_k."
        )

    def modules(self, model: Core) -> int:
        """Return the number of recipes of experts in a layer."""
        return 0 if model.experts is None else model.experts.n

    def least_elements(self, model: Core) -> Iterator[tuple[str, int]]:
        """Yield the sizes of the largest tensors that primitives need."""
        yield "primitives.n × n_layers", self.n * model.n_layers
        if self.stored is None:
            ranks = self.n * self.rank
            yield "primitives.n × rank × (d_model + d_ff)", ranks * (model.d_model + model.d_ff)

    def check(self, model: Core) -> None:
        """Raise BadInput for a model that these primitives do not fit."""
        layers = [layer for band in self.bands for layer in band]
        full = min(model.d_model, model.d_ff)
        if model.experts is not None and model.experts.shared:
            raise BadInput(
                "experts.shared: experts that are recipes of primitives have no shared ones. "
                "Set experts.shared to 0"
            )
        if model.gated:
            raise BadInput(
                "primitives: layers of primitives have two matrices and no gate. Set "
                "activation to gelu or relu2"
            )
        # A record can claim any number of layers, so the first that is missing ends this.
        for layer in range(model.n_layers):
            if layers.count(layer) != 1:
                problem = "twice" if layer in layers else "in no band"
                raise BadInput(
                    f"primitives.bands has layer {layer} {problem}; each of the {model.n_layers} "
                    "layers must be in one band"
                )
        if max(layers) >= model.n_layers:
            raise BadInput(
                f"primitives.bands names layer {max(layers)}, but the model has "
                f"{model.n_layers} layers, 0 to {model.n_layers - 1}"
            )
        if self.rank > full:
            raise BadInput(
                f"primitives.rank {self.rank} is above {full}, the smaller side of a "
                "feed-forward matrix: no matrix of this shape has a higher rank"
            )
        if 2 * self.n * self.rank % ROW_BYTES:
            raise BadInput(
                f"primitives.n {self.n} times primitives.rank {self.rank} must be a multiple "
                f"of {ROW_BYTES // 2}: matrix products are fast only with aligned rows"
            )


def _bands(value: object) -> tuple[tuple[int, ...], ...]:
    bands = require_list("primitives.bands", value)
    numbers: Sequence[tuple[int, ...]] = [layer_numbers("primitives.bands", band) for band in bands]
    if not numbers or not all(numbers):
        raise BadInput(f"primitives.bands is {shown(value)}; each band needs at least one layer")
    return tuple(numbers)
