"""What an optimizer is: its state for a parameter, its step and its bytes.

An optimizer has one file, with a subclass of `Rule`, and one row in pion/train/optimizers.py.
Checkpoints, several ranks, sharded models and the memory plan follow from what the class says.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config.parts import Role
from pion.errors import BadInput
from pion.model.decoder import OWN_RULES
from pion.model.saved_weights import Layout
from pion.train.optimizers import OPTIMIZERS
from pion.train.settings import TrainSettings


@dataclass(frozen=True)
class Owned:
    """A parameter, or of a sharded model this rank's rows of it, which this rank updates.

    Attributes:
        state: what the rank has of each state tensor, flat, by key.
        steps: the updates of these elements; a kernel needs the count on the device.
    """

    param: nn.Parameter
    state: dict[str, Tensor]
    steps: Tensor

    @property
    def weights(self) -> Tensor:
        """The elements themselves: a flat view."""
        return self.param.detach().view(-1)

    @property
    def gradient(self) -> Tensor:
        """The gradients of the elements: a flat view."""
        assert self.param.grad is not None
        return self.param.grad.view(-1)


class Rule(ABC):
    """An optimizer of parameters that have one role and are trained together.

    `roles` are those that the optimizer updates; AdamW updates all others.
    """

    roles: ClassVar[frozenset[Role] | None] = None  # None: all
    # Whether rows are updated each for itself: a rank of a sharded model has some of a matrix.
    by_rows: ClassVar[bool] = True
    owned: Sequence[Owned] = ()

    def __init__(
        self, settings: TrainSettings, weight_decay: float, owned: Sequence[Owned]
    ) -> None:
        self.settings, self.weight_decay, self.owned = settings, weight_decay, owned

    @staticmethod
    @abstractmethod
    def state(shape: torch.Size) -> Layout:
        """Return the shape and the dtype of each state tensor of a whole parameter, by key.

        The tensors begin as zeros. A tensor has an element for each element of the parameter, or
        one for so many neighbours in a row.
        """

    @staticmethod
    def step_bytes(shapes: Iterable[torch.Size]) -> int:
        """Return the most bytes at once in a step over parameters, besides their state."""
        return 0

    @abstractmethod
    def step(self, lr: float, momentum: float) -> None:
        """Update the weights of all `owned` from their gradients.

        A rule that reads `owned.steps` adds 1 to it. `momentum` is that of Muon, which may change
        over the run.
        """


@lru_cache
def rule_of(optimizer: str, role: Role) -> type[Rule]:
    """Return what updates parameters of a role. Primitives have rules of their own besides it.

    Raises BadInput if the optimizer's row names no class that can be one.
    """
    name = OPTIMIZERS[optimizer].rule
    try:
        rule: type[Rule] = pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        where = "pion/train/optimizers.py"
        raise BadInput(f"the row of {optimizer} in {where} names {name}: {error}") from None
    if missing := sorted(rule.__abstractmethods__):
        raise BadInput(f"the optimizer {optimizer}: {name} has no {' and no '.join(missing)}")
    updates = role not in OWN_RULES if rule.roles is None else role in rule.roles
    return rule if updates else pkgutil.resolve_name(OPTIMIZERS["adamw"].rule)


def state_bytes(optimizer: str, role: Role, shape: torch.Size) -> int:
    """Return the bytes of the state of a parameter."""
    state = rule_of(optimizer, role).state(shape).values()
    return sum(size.numel() * dtype.itemsize for size, dtype in state)
