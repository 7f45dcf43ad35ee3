"""The table of phases in a training stage of the job file; see pion/train/phases.py."""

from __future__ import annotations

from collections.abc import Sequence

from pion.train.phases import Phase as TrainPhase
from pipeline.job.section import FACTOR, LAYERS, STEPS, WIDTH, Section, scheduled


class Phase(Section):
    """A part of the stage with its own rates, recipe sizes and trained bands."""

    until: float | int | None = scheduled(
        None,
        "where the phase ends: a share of the steps, such as 0.2, or a number of steps, such as "
        "3000; the last phase has none",
        most=STEPS,
    )
    rates: dict[str, float] = scheduled(
        {},
        "factors of the learning rates by role (matrix, router, embedding, head, primitive, "
        "recipe, gate, vector), and by `others` for all other roles; 0 freezes a role",
        most=FACTOR,
    )
    top_k: int | None = scheduled(
        None, "primitives in a recipe; unset: the model's", gt=0, most=4096
    )
    rank: int | None = scheduled(
        None, "ranks of each primitive in use; unset: all", gt=0, most=WIDTH
    )
    unfreeze: list[int] | None = scheduled(
        None,
        "the only bands whose layers and banks are trained, counted from 0; unset: all",
        most=LAYERS,
    )


def phases_of(phases: Sequence[Phase]) -> tuple[TrainPhase, ...]:
    """Return the trainer's phases."""
    return tuple(
        TrainPhase(
            until=phase.until,
            rates=phase.rates,
            top_k=phase.top_k,
            rank=phase.rank,
            unfreeze=None if phase.unfreeze is None else tuple(phase.unfreeze),
        )
        for phase in phases
    )
