"""The rows of the bench, in the order in which they run: first whether it is right, then speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pion.bench.correctness.kernels import (
    check_compiled_loss,
    check_experts,
    check_flex,
    check_loss,
    check_masks,
)
from pion.bench.correctness.outputs import (
    KINDS,
    LIMITS,
    check_generation,
    check_logits,
    check_losses,
)
from pion.bench.correctness.recovery import check_resume, check_step_down
from pion.bench.models import FAMILIES, Bench, measured_presets
from pion.bench.results import SAVE, TRAIN, Outcome
from pion.bench.speed import measure_decoding, measure_saving, measure_training
from pion.errors import BadInput
from pion.later_fields import closest

# How many texts are decoded at once.
TEXTS = (1, 16)


@dataclass(frozen=True)
class Task:
    """A row to run. A `check` says right or wrong; the other tasks measure."""

    name: str
    run: Callable[[], Outcome]
    check: bool


def every_task(bench: Bench) -> list[Task]:
    """Return all rows in their order."""
    return [*_checks(bench), *_measurements(bench)]


def chosen_tasks(bench: Bench, only: Sequence[str]) -> list[Task]:
    """Return the rows with these names, or below these names; all rows if there are no names.

    Raises BadInput for a name that no row has.
    """
    tasks = every_task(bench)
    known = [task.name for task in tasks]
    for name in only:
        if not any(_is_under(row, name) for row in known):
            raise BadInput(
                f"--only {name}: the bench has no such row{closest(name, known)}. --names lists "
                "all rows. Nothing was measured"
            )
    return [task for task in tasks if not only or any(_is_under(task.name, n) for n in only)]


def _is_under(row: str, name: str) -> bool:
    return row == name or row.startswith(name.rstrip("/") + "/")


def _checks(bench: Bench) -> list[Task]:
    found: dict[str, Callable[[], Outcome]] = {}
    for family in FAMILIES:
        found[f"logits/{family}"] = partial(check_logits, bench, family)
    for family in FAMILIES:
        for dtype in LIMITS:
            found[f"losses/{family}/{dtype}"] = partial(check_losses, bench, family, dtype)
    found["masks"] = partial(check_masks, bench)
    for kind in KINDS:
        found[f"generation/{kind}"] = partial(check_generation, bench, kind)
    for family in FAMILIES:
        found[f"resume/{family}"] = partial(check_resume, bench, family)
    found["kernels/loss"] = partial(check_loss, bench)
    found["kernels/compiled-loss"] = partial(check_compiled_loss, bench)
    found["kernels/experts"] = partial(check_experts, bench)
    found["kernels/flex"] = partial(check_flex, bench)
    found["step-down"] = partial(check_step_down, bench)
    return [Task(name, run, True) for name, run in found.items()]


def _measurements(bench: Bench) -> list[Task]:
    presets = measured_presets(bench.tiny)
    first = next(iter(presets))
    found: dict[str, Callable[[], Outcome]] = {}
    for name, config in presets.items():
        for how in ("eager", "compiled"):
            run = partial(measure_training, bench, name, config, how == "compiled")
            found[f"{TRAIN}{name}/{how}"] = run
        if name == first:
            found[f"{SAVE}{name}"] = partial(measure_saving, bench, config)
            for texts in TEXTS:
                found[f"decode/{name}/{texts}"] = partial(measure_decoding, bench, config, texts)
    return [Task(name, run, False) for name, run in found.items()]
