"""AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pion.model.saved_weights import Layout
from pion.train.optimizer.rule import Owned, Rule

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(Rule):
    """AdamW with moments in fp32. Each element is updated for itself."""

    @staticmethod
    def state(shape: torch.Size) -> Layout:
        """Return the layout of both moments."""
        return dict.fromkeys(MOMENTS, (shape, torch.float32))

    def step(self, lr: float, momentum: float) -> None:
        """Update all weights, and count the update."""
        self._step(self.owned, lr)

    def _step(self, owned: Sequence[Owned], lr: float) -> None:
        """Update weights whose moments are in fp32, and count the update."""
        exp_avgs, exp_avg_sqs = ([each.state[key] for each in owned] for key in MOMENTS)
        weights, gradients = [each.weights for each in owned], [each.gradient for each in owned]
        steps = [each.steps for each in owned]
        self._update(weights, gradients, exp_avgs, exp_avg_sqs, steps, lr)

    def _update(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        steps: list[Tensor],
        lr: float,
    ) -> None:
        # The functional form is used because constructing an optimizer object imports torch's
        # compiler, which would delay every start by seconds.
        adamw(
            weights,
            gradients,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=self.settings.beta1,
            beta2=self.settings.beta2,
            lr=lr,
            weight_decay=self.weight_decay,
            eps=self.settings.eps,
            maximize=False,
        )
