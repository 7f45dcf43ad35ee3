"""The rows of the bench, in the order of their worth: a bench may end before it reaches all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import get_args

from pion.bench.losses import LIMITS, check_losses
from pion.bench.models import Bench, measured_presets
from pion.bench.results import SAVE, TRAIN, Outcome
from pion.bench.speed import (
    How,
    measure_generating,
    measure_saving,
    measure_training,
)
from pion.config.presets import FAMILIES
from pion.errors import BadInput
from pion.later_fields import closest

# How many texts are continued at once.
TEXTS = (1, 16, 64, 256)
# What is worth the most comes first: whether a model computes right at all, then the numbers that
# people ask for, then whether the other families compute right, and last the speed of every preset.
# Presets are in the order of `measured_presets`.
WORTH = (
    *("losses/pion/bfloat16", "train/pion-small/job", "train/tiny-pion/job"),
    *("generate/*", "save/*", "losses/*/bfloat16", "losses/*"),
    *(f"train/{family.measured}/job" for family in FAMILIES.values()),
    *("train/pion-small/compiled", "train/*/job"),
    *("train/pion-small/eager", "*"),
)


@dataclass(frozen=True)
class Task:
    """A row to run. A `check` says right or wrong; the other tasks measure."""

    name: str
    run: Callable[[], Outcome]
    check: bool


def every_task(bench: Bench) -> list[Task]:
    """Return all rows in their order."""
    tasks = [
        *(
            Task(
                f"losses/{family}/{dtype}", partial(check_losses, bench, family, dtype), check=True
            )
            for family in FAMILIES
            for dtype in LIMITS
        ),
        *(Task(name, run, check=False) for name, run in _measurements(bench).items()),
    ]
    # A row comes at its first place in WORTH.
    return sorted(
        tasks, key=lambda task: [fnmatchcase(task.name, rows) for rows in WORTH].index(True)
    )


def chosen_tasks(bench: Bench, only: Sequence[str]) -> list[Task]:
    """Return the rows with these names, or below these names; all rows if there are no names.

    Raises BadInput for a name that no row has.
    """
    tasks = every_task(bench)
    names = [task.name for task in tasks]
    for name in only:
        if not any(_is_under(row, name) for row in names):
            raise BadInput(
                f"--only {name}: the bench has no such row{closest(name, names) or '.'} --names "
                "lists all rows. Nothing was measured"
            )
    return [task for task in tasks if not only or any(_is_under(task.name, n) for n in only)]


def _is_under(row: str, name: str) -> bool:
    return row == name or row.startswith(name.rstrip("/") + "/")


def _measurements(bench: Bench) -> dict[str, Callable[[], Outcome]]:
    measurements: dict[str, Callable[[], Outcome]] = {}
    for number, (name, config) in enumerate(measured_presets(bench.tiny).items()):
        measurements |= {
            f"{TRAIN}{name}/{how}": partial(measure_training, bench, name, config, how)
            for how in get_args(How)
        }
        if number == 0:
            measurements[f"{SAVE}{name}"] = partial(measure_saving, bench, config)
            measurements |= {
                f"generate/{name}/{n}": partial(measure_generating, bench, config, n) for n in TEXTS
            }
    return measurements
