"""The settings of a stage that learns from preferences: of two answers, one is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pion.errors import BadInput

Loss = Literal["dpo", "dpo-norm", "ipo", "apo-zero", "apo-down", "simpo", "orpo"]

# β of each loss, if none is given; in orpo it is λ.
BETA: dict[Loss, float] = {
    "dpo": 0.1,
    "dpo-norm": 5.0,
    "ipo": 1.0,
    "apo-zero": 0.1,
    "apo-down": 0.1,
    "simpo": 2.5,
    "orpo": 0.1,
}
# The margin of simpo, if none is given, as a share of β (Meng et al. 2024 recommend 0.25 to 0.5).
MARGIN = 0.5

WITHOUT_REFERENCE = ("simpo", "orpo")
# These compare means over tokens, the others sums.
OF_MEANS = ("dpo-norm", "ipo", "simpo", "orpo")
SMOOTHED = ("dpo", "dpo-norm", "simpo")
# These make sense without a reference too, whose sums are then 0.
REFERENCE_CAN_BE_NONE = ("dpo", "dpo-norm", "ipo")


@dataclass(frozen=True)
class Preference:
    """How a stage learns from preferences.

    Raises BadInput for values that make no sense, and for those that the loss ignores.

    Attributes:
        beta: how much the difference from the reference counts; None: as in BETA.
        margin: by how much simpo's chosen answer has to be better (γ); None: half of β.
        label_smoothing: the share of labels that are expected to be swapped.
        sft_weight: the weight of the chosen answers' cross-entropy per token, which is added.
        desirable_weight, undesirable_weight: the weights of single answers.
        unpaired: whether apo-zero learns from single answers.
    """

    loss: Loss = "dpo-norm"
    beta: float | None = None
    margin: float | None = None
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    unpaired: bool = False

    def __post_init__(self) -> None:
        if self.loss not in BETA:
            raise BadInput(f"loss = {self.loss!r}: must be one of {', '.join(BETA)}")
        if self.beta is not None and not 0 < self.beta < math.inf:
            raise BadInput(f"beta = {self.beta!r}: must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise BadInput(f"label_smoothing = {self.label_smoothing!r}: must be in [0, 0.5)")
        for name in ("sft_weight", "desirable_weight", "undesirable_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadInput(f"{name} = {getattr(self, name)!r}: must not be negative")
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise BadInput(f"margin = {self.margin!r}: must not be negative")
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        """Raise BadInput for values that the loss ignores."""
        weighted = self.desirable_weight != 1 or self.undesirable_weight != 1
        for name, is_set, losses in (
            ("margin", self.margin is not None, ("simpo",)),
            ("label_smoothing", self.label_smoothing > 0, SMOOTHED),
            ("unpaired", self.unpaired, ("apo-zero",)),
        ):
            if is_set and self.loss not in losses:
                whose = ", ".join(losses)
                raise BadInput(f"{name}: the loss {self.loss} ignores it. It is for {whose}")
        if weighted and self.paired:
            raise BadInput(
                "desirable_weight and undesirable_weight are of single answers. The loss "
                f"{self.loss} compares pairs, and ignores them"
            )

    @property
    def paired(self) -> bool:
        """Whether the loss is of pairs, and not of single answers."""
        return not self.unpaired

    @property
    def strength(self) -> float:
        """β."""
        return BETA[self.loss] if self.beta is None else self.beta

    @property
    def least_margin(self) -> float:
        """γ of simpo, else 0."""
        if self.loss != "simpo":
            return 0.0
        return MARGIN * self.strength if self.margin is None else self.margin
