"""The settings of a stage that learns from rewards, and the weight of each answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pion.config.model_config import APART_ROLES
from pion.config.parts import Role
from pion.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

# Weights whose losses this stage has not: what guesses tokens, and what says which to skip. They
# keep to what they have learned.
WITHOUT_LOSS: frozenset[Role] = APART_ROLES | {"gate"}

# Is added to the standard deviation of a group's rewards, as TRL does.
LEAST_STD = 1e-4


@dataclass(frozen=True)
class Reinforcement:
    """How a stage learns from rewards. Raises BadInput for values that make no sense.

    Attributes:
        answers: how many are sampled to each prompt.
        max_tokens: the most tokens of an answer.
        scale: what advantages are divided by: nothing, or the standard deviation of the group's
            rewards (Shao et al. 2024, "GRPO").
    """

    answers: int = 8
    max_tokens: int = 256
    scale: Literal["none", "std"] = "none"

    def __post_init__(self) -> None:
        if self.answers < 2:
            raise BadInput(
                f"answers = {self.answers}: must be at least 2, because an answer is compared with "
                "the others to the same prompt"
            )
        if self.max_tokens < 1:
            raise BadInput(f"max_tokens = {self.max_tokens}: must be at least 1")
        if self.scale not in ("none", "std"):
            raise BadInput(f"scale = {self.scale!r}: must be one of none, std")

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return by how much each reward is above the mean of its group, (prompts, answers) fp64.

        It is exactly 0 where all rewards of a group are equal, although their mean is rounded.
        (Williams 1992, with the baseline of Shao et al. 2024; without their division, as in Liu et
        al. 2025, "Understanding R1-Zero-like training".)
        """
        above = (rewards - rewards.mean(dim=1, keepdim=True)) * differ(rewards)[:, None]
        if self.scale == "none":
            return above
        return above / (rewards.std(dim=1, keepdim=True) + LEAST_STD)


def differ(rewards: Tensor) -> Tensor:
    """Return whether the rewards (prompts, answers) of a group differ, (prompts,) boolean."""
    return (rewards != rewards[:, :1]).any(dim=1)
