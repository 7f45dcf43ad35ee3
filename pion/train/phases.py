"""Phases of a run: parts with their own rates, recipe sizes and trained bands (PILON).

The phase of a step depends only on the step. So a resumed run needs nothing but its step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.later_fields import closest, shown
from pion.model.roles import Role

OTHERS = "others"


@dataclass(frozen=True)
class Phase:
    """A part of a run. Fields that are None leave things as the model has them.

    Attributes:
        until: where the phase ends: a share of the run's steps in (0, 1), or a number of finished
            steps. The last phase has None: it lasts to the end.
        rates: factors of the learning rates by role, and by "others" for all other roles. A role
            with the factor 0 is frozen: its parameters, moments and counts stand still.
        top_k: primitives in a recipe.
        rank: ranks of each primitive in use.
        bands: the bands that are trained, with their layers and banks. Others are frozen.
    """

    until: float | int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    top_k: int | None = None
    rank: int | None = None
    bands: tuple[int, ...] | None = None

    def factor(self, role: Role) -> float:
        """Return the factor of a role's learning rate."""
        return self.rates.get(role, self.rates.get(OTHERS, 1.0))

    def frozen_roles(self) -> frozenset[Role]:
        """Return the roles that this phase does not train."""
        return frozenset(role for role in get_args(Role) if self.factor(role) == 0)

    def end(self, steps: int) -> int:
        """Return the number of finished steps at which the phase ends, of a run of `steps`."""
        if self.until is None:
            return steps
        return round(self.until * steps) if isinstance(self.until, float) else self.until


def phase_at(phases: Sequence[Phase], step: int, steps: int) -> Phase:
    """Return the phase of optimizer step `step`, of a run of `steps`."""
    return next((phase for phase in phases if step < phase.end(steps)), phases[-1])


def check_phases(phases: Sequence[Phase], steps: int) -> None:
    """Raise BadInput for phases that no run of `steps` steps can have."""
    before = 0
    for number, phase in enumerate(phases):
        where = f"phases[{number}]"
        last = number == len(phases) - 1
        if (phase.until is None) is not last:
            raise BadInput(
                f"{where}.until: the last phase lasts to the end of the run, so it has no `until`"
                if last
                else f"{where}: give `until`, the share of the steps at which the phase ends"
            )
        _check_rates(where, phase)
        if isinstance(phase.until, float) and not 0 < phase.until < 1:
            raise BadInput(
                f"{where}.until is {shown(phase.until)}; a share of the steps must be in (0, 1)"
            )
        end = phase.end(steps)
        if not before < end <= steps or (end == steps and not last):
            raise BadInput(
                f"{where} ends at step {end}; it must end after step {before} and before step "
                f"{steps}, the end of the run"
            )
        before = end


def _check_rates(where: str, phase: Phase) -> None:
    known = (*get_args(Role), OTHERS)
    for name, rate in phase.rates.items():
        if name not in known:
            raise BadInput(f"{where}.rates: unknown role {shown(name)}{closest(name, known)}")
        if not rate >= 0:
            raise BadInput(f"{where}.rates.{name} is {shown(rate)}; it must be at least 0")
    if len(phase.frozen_roles()) == len(get_args(Role)) or phase.bands == ():
        raise BadInput(f"{where} freezes everything: give some rate above 0")


def check_phases_of_model(phases: Sequence[Phase], config: ModelConfig) -> None:
    """Raise BadInput for phases that do not fit a model."""
    primitives = config.primitives
    for number, phase in enumerate(phases):
        for name in ("top_k", "rank", "bands"):
            if primitives is None and getattr(phase, name) is not None:
                raise BadInput(f"phases[{number}].{name}: the model has no primitives")
        if primitives is None:
            continue
        for name, most in (("top_k", primitives.n), ("rank", primitives.rank)):
            value = getattr(phase, name)
            if value is not None and not 1 <= value <= most:
                raise BadInput(
                    f"phases[{number}].{name} is {shown(value)}; it must be from 1 to {most}"
                )
        for band in phase.bands or ():
            if not 0 <= band < len(primitives.bands):
                raise BadInput(
                    f"phases[{number}].bands names band {band}, but the model has "
                    f"{len(primitives.bands)} bands, 0 to {len(primitives.bands) - 1}"
                )
