"""`pion ladder`: what it prints."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.table import Table
from rich.text import Text

from pion.errors import BadInput
from pipeline.console.formats import counted, measured, printable, show
from pipeline.console.print_and_ask import show_table
from pipeline.ladder.cap import Cap, describe
from pipeline.ladder.climb import Climb
from pipeline.ladder.grid import LENGTHS, WIDTHS, Grid
from pipeline.ladder.look import Ladder, Step
from pipeline.ladder.page import cells_of, write_page
from pipeline.ladder.prediction import Fit
from pipeline.ladder.runs import Runs, between_runs
from pipeline.state.owner import launch_id
from pipeline.state.stores.errors import before_work

# The exit code if all runs are done, and no law could be fitted to their results.
NO_FIT = 1
# A law whose loss without end is below this share of the lowest measured one has found none.
NO_FLOOR = 0.05


def run_ladder(runs: Runs, grid: Grid, cap: Cap) -> int:
    """Do what is left of a ladder, and print it; return 0, or NO_FIT.

    Raises BadInput, Stopped if the cap over all runs is reached, and what ends a run.
    """
    with before_work("Nothing was started.", managed=launch_id() is not None):
        climb = Climb(runs, grid, cap)
        before = climb.look()
    runs.say(_introduction(before))
    with between_runs():
        ladder = climb.go()
        page = write_page(ladder, runs.store)
    if runs.as_json:
        print(json.dumps(_as_json(ladder, page), indent=1))
    else:
        show_ladder(ladder)
        show(f"page: {page}")
    if ladder.stopped is not None:
        raise ladder.stopped
    return NO_FIT if ladder.fit is None else 0


def _introduction(ladder: Ladder) -> str:
    held = sum(step.rung.held_out for step in ladder.steps)
    done = sum(step.done for step in ladder.steps)
    words = [counted(len(ladder.steps), "run")]
    words += [f"{held} of them held out"] if held else []
    words += [f"{done} done before"] if done else []
    words += [f"cap: {ladder.cap}"]
    return f"{ladder.name} in {ladder.url.rpartition('/')[0]}: {', '.join(words)}"


# ---------------------------------------------------------------- options


def grid_of(widths: str | None, tokens: str | None, hold_out: str | None) -> Grid:
    """Return the grid that the options ask for, which are shares separated by commas. Raises
    BadInput for a text that is no number."""
    wide = WIDTHS if widths is None else _shares("--widths", widths)
    long = LENGTHS if tokens is None else _shares("--tokens", tokens)
    held_out, beyond = _held_out(hold_out)
    return Grid(tuple(wide), tuple(long), held_out, beyond)


def _held_out(text: str | None) -> tuple[int, tuple[tuple[float, float], ...]]:
    """Return the number of runs of the grid to hold out, and the pairs of shares of more runs."""
    if text is None:
        return 0, ()
    if text.strip().isdecimal() and len(text) < 9:
        return int(text), ()
    pairs = []
    for part in text.split(","):
        width, by, length = part.partition("x")
        if not by:
            raise BadInput(
                f"--hold-out {text}: give a number of runs, such as 4, or runs beyond the grid as "
                "shares of width and tokens, such as 0.7x0.5,0.9x0.25. Nothing was started."
            )
        pairs.append((_share("--hold-out", width), _share("--hold-out", length)))
    return 0, tuple(pairs)


def _shares(option: str, text: str) -> list[float]:
    return sorted({_share(option, part) for part in text.split(",")})


def _share(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(
            f"{option}: {text.strip()!r} is not a number. Give shares of the job's own, separated "
            "by commas, such as 0.25,0.5. Nothing was started."
        ) from None


# ---------------------------------------------------------------- what is printed


def show_ladder(ladder: Ladder) -> None:
    """Print the table of the runs, what they cost, and the fit."""
    table = Table(box=None, pad_edge=False)
    predicted = any(step.prediction for step in ladder.steps)
    names = ["run", "multiplications", "tokens", "FLOPs", "bits per byte"]
    names += ["predicted, 90 % between", "error"] if predicted else []
    for name in names:
        table.add_column(name, justify="left" if name == "run" else "right")
    for step in ladder.steps:
        *known, result, middle, between, error = cells_of(step)
        cells = [*known, "failed" if step.failed else result]
        cells += [f"{middle}, {between}" if middle else "", error] if predicted else []
        table.add_row(*(Text(printable(cell)) for cell in cells))
    show("")
    show_table(table)
    show("")
    show(f"{counted(len(ladder.steps), 'run')}: {describe(ladder.spent)}")
    for step in ladder.steps:
        if step.failed is not None:
            show(f"{step.rung.name} {step.failed}; the fit leaves it out")
    for line in fit_lines(ladder.fit):
        show(line)


def fit_lines(fit: Fit | None) -> list[str]:
    """Return the law in words."""
    if fit is None:
        return ["no fit yet: too few runs are finished"]
    law, noise = fit.law, measured(fit.noise, digits=4)
    least = min(point.bits_per_byte for point in fit.points)
    no_floor = [
        "    Warning: the law has no floor, so the runs are too short or too alike to say what "
        "larger runs reach. Add longer runs (--tokens), and don't rely on predictions far beyond."
    ]
    return [
        f"bits per byte = {law.E:.3f} + {law.A:.4g} · N^-{law.alpha:.3f} + {law.B:.4g} · "
        f"D^-{law.beta:.3f}",
        f"    N: multiplications per token, D: tokens; a run is {noise} bits per byte from it. "
        f"Trusted up to {fit.trusted_flops:.2g} FLOPs.",
        *(no_floor if NO_FLOOR * least > law.E else []),
    ]


def _as_json(ladder: Ladder, page: str) -> dict[str, Any]:
    """Return the ladder as plain JSON."""
    return {
        "ladder": ladder.name,
        "runs": [_step_json(step) for step in ladder.steps],
        "fit": None if ladder.fit is None else dataclasses.asdict(ladder.fit),
        "cap": dataclasses.asdict(ladder.cap),
        "hours": ladder.spent.hours,
        "dollars": ladder.spent.dollars,
        "stopped": None if ladder.stopped is None else str(ladder.stopped),
        "page": page,
    }


def _step_json(step: Step) -> dict[str, Any]:
    rung, result, said = step.rung, step.result, step.prediction
    return {
        "run": rung.name,
        "macs_per_token": rung.macs_per_token,
        "tokens": rung.tokens,
        "flops": rung.flops,
        "held_out": rung.held_out,
        "bits_per_byte": None if result is None else result.bits_per_byte,
        "bits_per_byte_sem": None if result is None else result.bits_per_byte_sem,
        "failed": step.failed,
        "predicted": None if said is None else dataclasses.asdict(said),
        "error": step.error,
        "hours": None if step.spent is None else step.spent.hours,
        "dollars": None if step.spent is None else step.spent.dollars,
    }
