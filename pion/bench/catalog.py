"""The rows of the bench, in the order of their worth: a bench may end before it reaches all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from pion.bench.losses import LIMITS, check_losses
from pion.bench.models import Bench, measured_presets
from pion.bench.results import SAVE, TRAIN, Outcome
from pion.bench.speed import (
    measure_decoding,
    measure_padded_decoding,
    measure_saving,
    measure_training,
)
from pion.config.presets import FAMILIES
from pion.errors import BadInput
from pion.later_fields import closest

# How many texts are decoded at once.
TEXTS = (1, 16)
# What is worth the most comes first: whether a model computes right at all, then the numbers that
# people ask for, then whether the other families compute right, and last the speed of every preset.
# Presets are in the order of `measured_presets`.
WORTH = (
    *("losses/pion/bfloat16", "train/pion-small/compiled", "train/tiny-pion/compiled"),
    *("decode/*", "save/*", "losses/*/bfloat16", "losses/*"),
    *(f"train/{family.measured}/compiled" for family in FAMILIES.values()),
    *("train/pion-small/eager", "*"),
)


# The first words of rows that the bench had once.
MOVED = (
    *("compiler", "logits", "masks", "generation", "graphs"),
    *("resume", "kernels", "step-down"),
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
    return sorted(tasks, key=lambda task: _place(task.name))


def _place(name: str) -> int:
    """Return the first place in WORTH that the row has."""
    return next(place for place, rows in enumerate(WORTH) if fnmatchcase(name, rows))


def chosen_tasks(bench: Bench, only: Sequence[str]) -> list[Task]:
    """Return the rows with these names, or below these names; all rows if there are no names.

    Raises BadInput for a name that no row has.
    """
    tasks = every_task(bench)
    known = [task.name for task in tasks]
    for name in only:
        if name.partition("/")[0] in MOVED:
            raise BadInput(
                f"--only {name}: the bench has this row no more. In a checkout, `pytest -n 0 -m "
                "gpu tests/gpu` checks it. Nothing was measured"
            )
        if not any(_is_under(row, name) for row in known):
            raise BadInput(
                f"--only {name}: the bench has no such row{closest(name, known)}. --names lists "
                "all rows. Nothing was measured"
            )
    return [task for task in tasks if not only or any(_is_under(task.name, n) for n in only)]


def _is_under(row: str, name: str) -> bool:
    return row == name or row.startswith(name.rstrip("/") + "/")


def _measurements(bench: Bench) -> dict[str, Callable[[], Outcome]]:
    found: dict[str, Callable[[], Outcome]] = {}
    for place, (name, config) in enumerate(measured_presets(bench.tiny).items()):
        found |= {
            f"{TRAIN}{name}/eager": partial(measure_training, bench, name, config, False),
            f"{TRAIN}{name}/compiled": partial(measure_training, bench, name, config, True),
        }
        if place == 0:
            found[f"{SAVE}{name}"] = partial(measure_saving, bench, config)
            found |= {
                f"decode/{name}/{n}": partial(measure_decoding, bench, config, n) for n in TEXTS
            }
            most = max(TEXTS)
            found[f"decode/{name}/{most}-padded"] = partial(
                measure_padded_decoding, bench, config, most
            )
    return found
