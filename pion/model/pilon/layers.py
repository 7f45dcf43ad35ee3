"""Feed-forward layers that are mixtures of a band's primitives, and their reports (PILON)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.model.feedforward.dense import (
    ACTIVATIONS,
    NOTHING_ELSE,
    FeedForward,
    FeedForwardInputs,
    Stats,
)
from pion.model.feedforward.experts import route, routing_report
from pion.model.norm_and_projection import RMSNorm
from pion.model.pilon.primitive_banks import Mixing, Mixture, Recipe, recipe_of

RECIPE_STD = 0.01


class Composed(FeedForward):
    """Computes down(act(up(x))), both mixtures of primitives, and normalizes it with a sub-norm."""

    roles: ClassVar[dict[str, Role]] = {"up_recipe": "recipe", "down_recipe": "recipe"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.primitives is not None
        self.settings, self.d_model, self.d_ff = config.primitives, config.d_model, config.d_ff
        self.activate = ACTIVATIONS[config.activation]
        self.up_recipe = nn.Parameter(torch.empty(self.settings.n))
        self.down_recipe = nn.Parameter(torch.empty(self.settings.n))
        self.sub_norm = RMSNorm(config.d_model, config.norm_eps) if self.settings.sub_norm else None
        self._joined: tuple[Mixture, Mixture] | None = None

    def draw_weights(self, init: str, std: float) -> None:
        """Draw both recipes from N(0, 0.01²)."""
        nn.init.normal_(self.up_recipe, std=RECIPE_STD)
        nn.init.normal_(self.down_recipe, std=RECIPE_STD)

    @torch.no_grad()
    def join_projections(self, mixing: Mixing, dtype: torch.dtype) -> None:
        """Mix the primitives once, for all tokens from now on; see Decoder."""
        up, down = (
            mixture._replace(ins=mixture.ins.to(dtype), outs=mixture.outs.to(dtype))
            for mixture in self.mixtures(mixing)
        )
        self._joined = up, down

    def forward(self, x: Tensor, inputs: FeedForwardInputs = NOTHING_ELSE) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), without a report. `inputs` share a Mixing."""
        mixing: Mixing = inputs.shared
        up, down = self._joined or self.mixtures(mixing)
        result: Tensor = mixing.band.down(self.activate(mixing.band.up(x, up)), down)
        return (result if self.sub_norm is None else self.sub_norm(result)), {}

    def mixtures(self, mixing: Mixing) -> tuple[Mixture, Mixture]:
        """Return the mixtures of the layer's two recipes."""
        band, top_k, rank, recipes = mixing
        (up, down), *_ = recipes or (self.both_recipes(top_k),)
        return band.up.mixture(up, rank), band.down.mixture(down, rank)

    def both_recipes(self, top_k: int) -> tuple[Recipe, Recipe]:
        """Return the recipes up and down."""
        return recipe_of(self.up_recipe.float(), top_k), recipe_of(self.down_recipe.float(), top_k)

    def each(self) -> list[Composed]:
        """Return the layer itself."""
        return [self]

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        return 2 * self.settings.top_k * self.settings.rank * (self.d_model + self.d_ff)


class RoutedRecipes(FeedForward):
    """Computes Σ_{e in top-k} w_e · composed_e(x).

    Every recipe is computed for every token, and those that the router did not choose count 0. So
    nothing waits for the GPU, at n / top_k of the arithmetic that would be enough.
    """

    roles: ClassVar[dict[str, Role]] = {"router": "router"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.settings, self.d_model = config.experts, config.d_model
        self.router = nn.Parameter(torch.empty(config.experts.n, config.d_model))
        self.recipes = nn.ModuleList(Composed(config) for _ in range(config.experts.n))

    def draw_weights(self, init: str, std: float) -> None:
        """Draw the router."""
        nn.init.normal_(self.router, std=std)

    def join_projections(self, mixing: Mixing, dtype: torch.dtype) -> None:
        """Mix the primitives once, for all tokens from now on; see Decoder."""
        for recipe in self.each():
            recipe.join_projections(mixing, dtype)

    def forward(self, x: Tensor, inputs: FeedForwardInputs = NOTHING_ELSE) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), and report on the router: see routing_report."""
        routed = route(x, self.router, self.settings.top_k)
        shares = torch.zeros_like(routed.probabilities).scatter(2, routed.chosen, routed.weights)
        mixing: Mixing = inputs.shared
        mixed = torch.zeros_like(x)
        for number, share in enumerate(shares.split(1, dim=-1)):
            of_expert = mixing._replace(recipes=mixing.recipes[number : number + 1])
            result, _ = self.recipes[number](x, inputs._replace(shared=of_expert))
            mixed = mixed + share * result
        return mixed, routing_report(routed, self.settings, inputs.real)

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        return self.router.numel() + sum(recipe.macs_per_token() for recipe in self.each())

    def each(self) -> list[Composed]:
        """Return the layers of the experts."""
        return [recipe for recipe in self.recipes if isinstance(recipe, Composed)]


def layer_of_primitives(config: ModelConfig) -> FeedForward:
    """Return the feed-forward layer of a block: one mixture, or with experts a mixture for each."""
    return Composed(config) if config.experts is None else RoutedRecipes(config)
