"""Phases of a run: parts with their own rates, recipe sizes and trained bands (PILON).

The phase of a step depends only on the step. So a resumed run needs nothing but its step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from pion.config.model_config import APART_ROLES, ModelConfig
from pion.config.parts import Role
from pion.errors import BadInput
from pion.later_fields import closest, shown

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
        only_bands: the only bands that are trained, with their layers and banks.
        seq_len: tokens in a row that is read.
        rope_theta: the base of the angles of positions.
        passes: whether what the phase reads follows from how long it is.
    """

    until: float | int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    top_k: int | None = None
    rank: int | None = None
    only_bands: tuple[int, ...] | None = None
    seq_len: int | None = None
    rope_theta: float | None = None
    passes: bool = False

    def config_fields(self) -> dict[str, Any]:
        """Return what a model that has read up to this phase has in its config."""
        given = {"seq_len": self.seq_len, "rope_theta": self.rope_theta}
        return {name: value for name, value in given.items() if value is not None}

    def factor(self, role: Role) -> float:
        """Return the factor of a role's learning rate."""
        return self.rates.get(role, self.rates.get(OTHERS, 1.0))

    def frozen_roles(self) -> frozenset[Role]:
        """Return the roles that this phase does not train."""
        return frozenset(role for role in get_args(Role) if self.factor(role) == 0)

    def parts(self, config: ModelConfig) -> dict[str, Any]:
        """Return the parts of a model whose sizes this phase sets, by the names of their fields."""
        part: Any = config.feedforward_part
        known = {} if part is None else part.phase_sizes
        sizes = {name: size for name, size in self.sizes().items() if name in known}
        return {config.feedforward: replace(part, **sizes)} if sizes else {}

    def sizes(self) -> dict[str, int]:
        """Return the sizes that this phase sets."""
        given = (("top_k", self.top_k), ("rank", self.rank))
        return {name: size for name, size in given if size is not None}

    def end(self, steps: int) -> int:
        """Return the number of finished steps at which the phase ends, of a run of `steps`."""
        if self.until is None:
            return steps
        return round(self.until * steps) if isinstance(self.until, float) else self.until


def phase_at(phases: Sequence[Phase], step: int, steps: int) -> Phase:
    """Return the phase of optimizer step `step`, of a run of `steps`."""
    return next((phase for phase in phases if step < phase.end(steps)), phases[-1])


def config_of_largest_phase(phases: Sequence[Phase], config: ModelConfig) -> ModelConfig:
    """Return the model with the longest recipes of any phase, which need the most memory."""
    part: Any = config.feedforward_part
    if part is None or "top_k" not in part.phase_sizes:
        return config
    longest = max([part.top_k, *(phase.top_k or 0 for phase in phases)])
    return replace(config, **{config.feedforward: replace(part, top_k=longest)})


def only_apart(phases: Sequence[Phase], config: ModelConfig) -> bool:
    """Return whether parts that change nothing in the model are all that any phase trains."""
    others = _roles_of(config) - APART_ROLES
    frozen = [others <= phase.frozen_roles() for phase in phases]
    return config.alone != config and bool(frozen) and all(frozen)


def check_phases(phases: Sequence[Phase], steps: int) -> None:
    """Raise BadInput for phases that no run of `steps` steps can have, naming the first mistake."""
    before = 0
    for number, phase in enumerate(phases):
        where, last = f"phases.{number}", number == len(phases) - 1
        if last and phase.until is not None:
            raise BadInput(f"{where}.until: the last phase lasts to the end; remove `until`")
        if not last and phase.until is None:
            raise BadInput(f"{where}.until: missing; only the last phase lasts to the end")
        if isinstance(phase.until, float) and not 0 < phase.until < 1:
            raise BadInput(
                f"{where}.until: {shown(phase.until)} is no share of the steps; give 0 < until < 1"
            )
        end = phase.end(steps)
        if not before < end <= steps or (end == steps and not last):
            raise BadInput(
                f"{where}.until: the phase would end after step {end}. It must end after step "
                f"{before}, where it begins, and before step {steps}, the last"
            )
        _check_trained(where, phase)
        before = end


def _check_trained(where: str, phase: Phase) -> None:
    known = (*get_args(Role), OTHERS)
    for name, rate in phase.rates.items():
        if name not in known:
            raise BadInput(f"{where}.rates: unknown role {shown(name)}{closest(name, known)}")
        if not rate >= 0:
            raise BadInput(f"{where}.rates.{name}: {shown(rate)} is below 0")
    if len(phase.frozen_roles()) == len(get_args(Role)):
        raise BadInput(f"{where}.rates: all roles are frozen; give some role a rate above 0")


def _roles_of(config: ModelConfig) -> set[str]:
    """Return the roles that some parameter of the model has."""
    roles: set[str] = {"matrix", "embedding", "vector"}
    roles |= {role for _, part in config.parts() for role in part.roles}
    others = {"head": not config.tie_embeddings, "gate": config.gates}
    return roles | {role for role, there in others.items() if there}


def check_phases_of_model(
    phases: Sequence[Phase], config: ModelConfig, without_loss: frozenset[Role] = frozenset()
) -> None:
    """Raise BadInput for phases that do not fit a model, naming the first mistake.

    `without_loss` are the roles that a stage of rewards can't train.
    """
    part = config.feedforward_part
    known, bands = ({}, 0) if part is None else (part.phase_sizes, part.groups)
    for number, phase in enumerate(phases):
        where = f"phases.{number}"
        if _roles_of(config) - without_loss <= phase.frozen_roles():
            trained = ", ".join(sorted(set(get_args(Role)) - phase.frozen_roles()))
            why = "rewards teach none of these" if without_loss else "the model has none"
            raise BadInput(f"{where}.rates: only {trained} would be trained: {why}")
        given = [*phase.sizes(), *(() if phase.only_bands is None else ("unfreeze",))]
        if given and not known:
            raise BadInput(f"{where}.{given[0]}: the model has no primitives")
        for name, value in phase.sizes().items():
            if not 1 <= value <= known[name]:
                raise BadInput(f"{where}.{name}: {shown(value)} must be from 1 to {known[name]}")
        for band in phase.only_bands or ():
            if band not in range(bands):
                raise BadInput(
                    f"{where}.unfreeze: there is no band {shown(band)}; the model has {bands}, "
                    "counted from 0"
                )
