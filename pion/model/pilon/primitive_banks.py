"""Banks of low-rank primitives, and the mixtures that layers make of them.

Primitive p of a bank maps x to ((x · Aₚ) ⊙ s + b) · Bₚ, with A (d_in, rank) and B (rank, d_out).
The gain s and the bias b (rank) are shared by the primitives. A layer's recipe has a logit for each
primitive; its result is Σ ŵₚ · primitiveₚ(x) over the `top_k` largest logits, and ŵ is their
softmax. From PILON.

The weights ŵ and ternary scales are factors of the hidden states between A and B. So a mixture is
two products, with the factors of all its primitives next to each other.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.config.primitives import Primitives
from pion.errors import BadInput
from pion.model.norm_and_projection import RMSNorm, compute_dtype
from pion.model.pilon.bank_gradients import looked_up
from pion.model.pilon.ternary import (
    activation_scales,
    packed_bytes,
    rounded,
    ternary_scales,
    unpack_trits,
)

# The seed adds this under roots, so that they are never 0.
TINY = 1e-8


class Recipe(NamedTuple):
    """What a mixture uses: primitives `chosen` (k,), with `weights` (k,) that add up to 1.

    In a pass that is trained, the gradient of the chosen primitives goes to `outlet` (k, rank,
    d_in + d_out): see bank_gradients.py.
    """

    chosen: Tensor
    weights: Tensor
    outlet: Tensor | None = None


def recipe_of(logits: Tensor, top_k: int) -> Recipe:
    """Return the recipe of a layer from its logits (n,) in fp32."""
    # A softmax over all logits, rescaled, is the same. But rounding would give the other logits
    # gradients, which AdamW would follow.
    weights, chosen = logits.topk(top_k, sorted=False)
    return Recipe(chosen, weights.softmax(dim=0))


class Mixture(NamedTuple):
    """The tensors of a mixture, for a recipe: y = ((x · insᵀ) ⊙ scale + shift) · outs.

    `ins` is (k · rank, d_in), `outs` (k · rank, d_out), `scale` and `shift` (k · rank).
    """

    ins: Tensor
    scale: Tensor
    shift: Tensor
    outs: Tensor


class Bank(nn.Module):
    """`n` primitives d_in -> d_out, shared by the layers of a band.

    `factors` (n, rank, d_in + d_out) has the rank-one maps of each primitive: a row is a column of
    A and the row of B that belongs to it.

    A packed bank, as in a published model, has trits and scales instead: `packed` has the trits of
    the `stored` primitives (ternary.py), `scales` (stored, 2) those of A and B, and `numbers`
    (stored,) says in rising order which primitives of the bank these are. It can't be trained.
    """

    roles: ClassVar[dict[str, Role]] = dict.fromkeys(
        ("factors", "gain", "bias", "input_norm.weight"), "primitive"
    )
    # Weights whose gradients come outside of blocks (bank_gradients.py).
    outside: ClassVar = ("factors",)

    packed: Tensor
    scales: Tensor
    numbers: Tensor

    def __init__(
        self, d_in: int, d_out: int, settings: Primitives, eps: float, stored: int | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.widths = d_in, d_out
        self.stored = stored
        self._trits: Tensor | None = None
        if stored is None:
            self.factors = nn.Parameter(torch.empty(settings.n, settings.rank, d_in + d_out))
        else:
            size = packed_bytes(stored * settings.rank * (d_in + d_out))
            self.register_buffer("packed", torch.empty(size, dtype=torch.uint8))
            self.register_buffer("scales", torch.empty(stored, 2))
            self.register_buffer("numbers", torch.empty(stored, dtype=torch.int64))
        self.gain = nn.Parameter(torch.ones(settings.rank))
        self.bias = nn.Parameter(torch.zeros(settings.rank))
        self.input_norm = RMSNorm(d_in, eps) if settings.ternary else None

    def mixture(self, recipe: Recipe, rank: int | None = None) -> Mixture:
        """Return the mixture of a recipe; with `rank`, of the first ranks only."""
        ins, outs, in_scale, out_scale = self._chosen(recipe)
        weights = shifted = recipe.weights[:, None]
        if self.settings.bias_weight == "root":
            weights, shifted = weights + TINY, (weights + TINY).sqrt()
        scale = weights * in_scale * out_scale * self.gain
        shift = shifted * out_scale * self.bias
        if rank is not None:
            ins, outs = ins[:, :rank], outs[:, :rank]
            scale, shift = scale[:, :rank], shift[:, :rank]
        return Mixture(ins.flatten(0, 1), scale.flatten(), shift.flatten(), outs.flatten(0, 1))

    def _chosen(self, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the factors of the chosen primitives (k, rank, width), A's and B's.

        Also return the scales of both factors, (k, 1) or (1, 1). They are 1 if the bank is not
        ternary; else the factors are trits.
        """
        if self.stored is not None:
            where = torch.searchsorted(self.numbers, recipe.chosen)
            scales = self.scales[where].float()
            trits = self.trits()[where].to(scales.dtype)
            return *trits.split(self.widths, dim=-1), *scales.split(1, dim=-1)
        every, chosen, outlet = self.factors, recipe.chosen, recipe.outlet
        factors = every[chosen] if outlet is None else looked_up(every, chosen, outlet)
        ins, outs = factors.split(self.widths, dim=-1)
        if not self.settings.ternary:
            unit = ins.new_ones(1, 1)
            return ins, outs, unit, unit
        of = self.settings.ternary_scale
        every_in, every_out = self.factors.split(self.widths, dim=-1)
        in_scale, out_scale = ternary_scales(every_in, ins, of), ternary_scales(every_out, outs, of)
        ins, outs = rounded(ins, in_scale, 1), rounded(outs, out_scale, 1)
        return ins, outs, in_scale[..., 0], out_scale[..., 0]

    def forward(self, x: Tensor, mixture: Mixture) -> Tensor:
        """Map (B, T, d_in) to (B, T, d_out) by a mixture of this bank."""
        dtype = compute_dtype(x, mixture.ins)
        if self.input_norm is not None:
            x = self.input_norm(x)
        settings = self.settings
        if not settings.levels:
            hidden = linear(x.to(dtype), mixture.ins)
        else:
            x = x.float()
            sizes = activation_scales(x, settings.levels, settings.activation_scale)
            # bf16 has the whole numbers of up to 9 bits exactly.
            hidden = linear(rounded(x, sizes, settings.levels).to(dtype), mixture.ins) * sizes
        hidden = hidden * mixture.scale + mixture.shift
        return hidden.to(dtype) @ mixture.outs.to(dtype)

    def trits(self) -> Tensor:
        """Return the trits of a packed bank: int8 (stored, rank, d_in + d_out)."""
        if self._trits is None or self._trits.device != self.packed.device:
            assert self.stored is not None
            shape = (self.stored, self.settings.rank, sum(self.widths))
            self._trits = unpack_trits(self.packed, shape)
        return self._trits

    def check_packed(self, name: str, chosen: Tensor) -> None:
        """Raise BadInput for a damaged packed bank, or one without some of the `chosen`."""
        try:
            self.trits()
        except ValueError as error:
            raise BadInput(f"{name}.packed is damaged: {error}") from None
        numbers = self.numbers
        rising = bool((numbers.diff() > 0).all()) and int(numbers[0]) >= 0
        if not rising or int(numbers[-1]) >= self.settings.n:
            raise BadInput(
                f"{name}.numbers is damaged: it must have rising numbers below {self.settings.n}"
            )
        if not self.scales.isfinite().all():
            raise BadInput(f"{name}.scales is damaged: a scale is not finite")
        missing = chosen[~torch.isin(chosen, numbers)]
        if len(missing):
            raise BadInput(
                f"{name} has no primitive {int(missing[0])}, which a layer's recipe uses"
            )

    @torch.no_grad()
    def draw_weights(self, init: str, std: float) -> None:
        """Draw orthonormal A, over all primitives, and B from N(0, 1 / rank)."""
        if self.stored is not None:
            return  # a packed bank is only ever read from a file
        n, rank, _ = self.factors.shape
        ins, outs = self.factors.split(self.widths, dim=-1)
        d_in = self.widths[0]
        drawn = torch.randn(d_in, n * rank)
        wide = d_in < n * rank
        basis, _ = torch.linalg.qr(drawn.T if wide else drawn)
        ins.copy_((basis.T if wide else basis).view(d_in, n, rank).permute(1, 2, 0))
        outs.copy_(torch.randn(outs.shape) / math.sqrt(rank))


class Band(nn.Module):
    """The two banks of a band: `up` maps d_model to d_ff, and `down` back."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        primitives, eps = config.primitives, config.norm_eps
        assert primitives is not None
        up, down = (None, None) if primitives.stored is None else primitives.stored[number]
        self.up = Bank(config.d_model, config.d_ff, primitives, eps, up)
        self.down = Bank(config.d_ff, config.d_model, primitives, eps, down)


class Mixing(NamedTuple):
    """What a layer mixes: the banks of its band, of which it uses `top_k` primitives.

    `rank` is how many ranks of each primitive it uses, if not all. `recipes` has what each
    `Composed` of the layer uses, up and down, if that is known before the layer.
    """

    band: Band
    top_k: int
    rank: int | None = None
    recipes: tuple[tuple[Recipe, Recipe], ...] = ()
