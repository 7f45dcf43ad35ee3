"""Feed-forward layers whose experts are recipes of the same primitives (PILON)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config import ModelConfig
from pion.model.bands import Mixing
from pion.model.pass_kind import PassKind
from pion.model.pilon.layers import Composed
from pion.model.router import Stats, kept_by_router, route, routing_report
from pion.parameter_role import Role


class RoutedRecipes(nn.Module):
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

    def join_projections(self, mixing: Mixing, dtype: torch.dtype) -> None:
        """Mix the primitives once, for all tokens from now on; see Decoder."""
        for recipe in self._each():
            recipe.join_projections(mixing, dtype)

    def forward(self, x: Tensor, mixing: Mixing, real: Tensor | None) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), and report on the router: see routing_report."""
        routed = route(x, self.router, self.settings.top_k)
        shares = torch.zeros_like(routed.probabilities).scatter(2, routed.chosen, routed.weights)
        mixed = torch.zeros_like(x)
        for recipe, share in zip(self._each(), shares.split(1, dim=-1), strict=True):
            mixed = mixed + share * recipe(x, mixing)
        return mixed, routing_report(routed, self.settings, real)

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        return self.router.numel() + sum(recipe.macs_per_token() for recipe in self._each())

    def kept_bytes_per_token(self, at: PassKind) -> int:
        """Return the bytes kept for the backward pass: by recipes, their results and the router."""
        recipes = sum(recipe.kept_bytes_per_token(at) for recipe in self._each())
        results = len(self.recipes) * 4 * (self.d_model + 1)
        return recipes + results + kept_by_router(self.settings, self.d_model, at)

    def copied_bytes(self, at: PassKind) -> int:
        """Return the bytes of the chosen primitives, which are copied next to each other."""
        return sum(recipe.copied_bytes(at) for recipe in self._each())

    def backward_bytes(self, at: PassKind, tokens: int) -> int:
        """Return the most bytes that the backward pass adds to what is kept: of one recipe."""
        return max(recipe.backward_bytes(at, tokens) for recipe in self._each())

    def _each(self) -> list[Composed]:
        return [recipe for recipe in self.recipes if isinstance(recipe, Composed)]
