"""The banks that the layers of a band share, as a part of a decoder, and their reports (PILON)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.config.primitives import WAYS, Primitives
from pion.errors import BadInput
from pion.model.feedforward.dense import Stats
from pion.model.forward_pass import (
    AS_THE_MODEL,
    BlockInputs,
    Owner,
    Pass,
    Passed,
    SharedPart,
    State,
    StepOptions,
)
from pion.model.pilon.bank_gradients import outlet_of
from pion.model.pilon.layers import Composed, RoutedRecipes, layer_of_primitives
from pion.model.pilon.packed import packed
from pion.model.pilon.primitive_banks import Band, Bank, Mixing, Recipe, recipe_of
from pion.model.pilon.update_rule import PrimitiveWise

# Names of what a model with primitives reports: see `recipe_report`.
RECIPE_ENTROPY, PRIMITIVES_USED = "recipe_entropy", "primitives_used"


class SharedBanks(SharedPart, nn.ModuleList):
    """The banks of each band, in the order of the model's settings."""

    layer = staticmethod(layer_of_primitives)
    rules: ClassVar = {"primitive": PrimitiveWise}
    pack = staticmethod(packed)

    def __init__(self, config: ModelConfig) -> None:
        assert config.primitives is not None
        super().__init__(Band(config, number) for number in range(len(config.primitives.bands)))
        self.settings = config.primitives
        self.band_of = config.primitives.band_of()
        self._rows_in_layer = 1 if config.experts is None else config.experts.n

    def give(self, inputs: BlockInputs, block: nn.Module, layer: int, now: Pass) -> BlockInputs:
        """Return what a layer gets, with what it mixes."""
        mixing = self.mixing(layer, now.options)
        if now.trained and self.settings.stored is None:
            assert isinstance(block.feedforward, Composed | RoutedRecipes)
            each = block.feedforward.each()
            recipes = tuple(self._with_outlets(composed, layer, mixing, now) for composed in each)
            mixing = mixing._replace(recipes=recipes)
        return inputs._replace(feedforward=inputs.feedforward._replace(shared=mixing))

    def mixing(self, layer: int, options: StepOptions) -> Mixing:
        """Return what a layer mixes its feed-forward matrices of."""
        band = self[self.band_of[layer]]
        assert isinstance(band, Band)
        sizes: Primitives = options.parts.get("primitives", self.settings)
        return Mixing(band, sizes.top_k, None if sizes.rank == self.settings.rank else sizes.rank)

    def _with_outlets(
        self, composed: Composed, layer: int, mixing: Mixing, now: Pass
    ) -> tuple[Recipe, Recipe]:
        """Return the recipes up and down, each with an outlet for the gradient of its bank."""
        up, down = composed.both_recipes(mixing.top_k)
        of_band = f"bands.{self.band_of[layer]}."
        return (
            _with_outlet(up, mixing.band.up, now.carried, f"{of_band}up"),
            _with_outlet(down, mixing.band.down, now.carried, f"{of_band}down"),
        )

    def losses(self, model: Owner, passed: Passed) -> tuple[list[Tensor], Stats]:
        """Return the loss that keeps recipes apart, unless it weighs 0; and report on recipes."""
        recipes, sharing = self.recipes(model.blocks), self.sharing()
        weight, rows = self.settings.diversity_weight, len(passed.given.tokens)
        losses = [weight * rows * diversity_loss(recipes, sharing)] if weight else []
        top_k = passed.options.parts.get("primitives", self.settings).top_k
        return losses, recipe_report(recipes, sharing, top_k)

    def recipes(self, blocks: nn.ModuleList) -> Tensor:
        """Return the logits of all recipes in fp32: (2, rows, n), up and down.

        A layer has a row, or with experts a row for each, in the order of the layers.
        """
        parts = [part for part in blocks.modules() if isinstance(part, Composed)]
        up = torch.stack([part.up_recipe for part in parts])
        down = torch.stack([part.down_recipe for part in parts])
        return torch.stack((up, down)).float()

    def sharing(self) -> tuple[tuple[int, ...], ...]:
        """Return the rows of `recipes` that share the banks of each band."""
        each = self._rows_in_layer
        return tuple(
            tuple(each * layer + number for layer in band for number in range(each))
            for band in self.settings.bands
        )

    def check_weights(self, blocks: nn.ModuleList, state: Mapping[str, Tensor]) -> None:
        """Raise BadInput for packed banks that are damaged or lack a primitive of the recipes."""
        if self.settings.stored is None:
            return
        recipes = self.recipes(blocks)
        for number, rows in enumerate(self.sharing()):
            band = self[number]
            assert isinstance(band, Band)
            for way, bank, logits in zip(WAYS, (band.up, band.down), recipes, strict=True):
                chosen = [recipe_of(logits[row], self.settings.top_k).chosen for row in rows]
                bank.check_packed(f"bands.{number}.{way}", torch.cat(chosen))

    def check_skipping(self) -> None:
        """Raise BadInput if activations are rounded by the largest of a batch."""
        if self.settings.levels and self.settings.activation_scale == "batch":
            raise BadInput(
                "this imported model rounds activations by the largest of a batch, so skipped "
                "tokens would change others. Leave out --skip-above"
            )

    def join_projections(self, blocks: nn.ModuleList, dtype: torch.dtype) -> None:
        """Mix the primitives of each layer once, for all tokens to come."""
        for layer, block in enumerate(blocks):
            assert isinstance(block.feedforward, Composed | RoutedRecipes)
            block.feedforward.join_projections(self.mixing(layer, AS_THE_MODEL), dtype)

    def multiplied_out(
        self, config: ModelConfig, state: State, blocks: nn.ModuleList
    ) -> tuple[ModelConfig, State]:
        """Return the dense model, with biases, that computes the same.

        A mixture of primitives that are not ternary is one matrix with a bias:

            ((x · ins) · scale + shift) · outs = x · W + b, with W = ins · diag(scale) · outs
        """
        dense = {
            name: tensor
            for name, tensor in state.items()
            if not (name.startswith("bands.") or name.endswith("_recipe"))
        }
        for layer, block in enumerate(blocks):
            assert isinstance(block.feedforward, Composed)
            mixtures = block.feedforward.mixtures(self.mixing(layer, AS_THE_MODEL))
            for way, (ins, scale, shift, outs) in zip(WAYS, mixtures, strict=True):
                prefix = f"blocks.{layer}.feedforward.{way}"
                dense[f"{prefix}_proj.weight"] = (outs.T @ (scale[:, None] * ins)).detach()
                dense[f"{prefix}_bias"] = (shift @ outs).detach()
        return replace(config, primitives=None, feedforward_bias=True), dense

    def group_of(self, parameter: str) -> int | None:
        """Return the number of the band whose layers or banks have this parameter."""
        part, _, rest = parameter.partition(".")
        number = rest.partition(".")[0]
        if part == "bands":
            return int(number)
        return self.band_of[int(number)] if part == "blocks" else None


def _with_outlet(recipe: Recipe, bank: Bank, carried: dict[str, Tensor], name: str) -> Recipe:
    outlet, carried[name] = outlet_of(carried.get(name, bank.factors), recipe.chosen)
    return recipe._replace(outlet=outlet)


def diversity_loss(recipes: Tensor, bands: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the mean cosine of two recipes of a band, over all pairs (PILON).

    `recipes` (2, rows, n) has the logits of the recipes up and down, and `bands` the rows of each
    band: a row is a layer, or an expert of a layer. The mean is 0 if no band has two rows.
    """
    units = torch.nn.functional.normalize(recipes.softmax(dim=-1), dim=-1)
    total, pairs = recipes.new_zeros(()), 0
    for band in bands:
        # An index that is a list would wait for the GPU.
        of_band = torch.stack([units[:, row] for row in band])
        # (Σu)² has each pair twice, and the squares.
        total = total + (of_band.sum(dim=0).square().sum() - of_band.square().sum()) / 2
        pairs += len(units) * len(band) * (len(band) - 1) // 2
    return total / max(pairs, 1)


@torch.no_grad()
def recipe_report(
    recipes: Tensor, bands: tuple[tuple[int, ...], ...], top_k: int
) -> dict[str, Tensor]:
    """Report on recipes (2, rows, n) of the rows of each band; see `diversity_loss`.

    "recipe_entropy" (rows,) is the mean entropy of a row's two recipes in nats. "primitives_used"
    (2 · bands,) counts for each bank the primitives that some row chooses: of each band, the bank
    that maps up and then the one that maps down.
    """
    entropy = torch.special.entr(recipes.softmax(dim=-1)).sum(dim=-1).mean(dim=0)
    used = []
    for band in bands:
        for matrix in recipes:
            chosen = torch.zeros(matrix.shape[-1], device=matrix.device)
            for row in band:
                chosen[recipe_of(matrix[row], top_k).chosen] = 1
            used.append(chosen.sum())
    return {RECIPE_ENTROPY: entropy, PRIMITIVES_USED: torch.stack(used)}
