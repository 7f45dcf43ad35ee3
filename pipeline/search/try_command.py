"""`pion try`: what it prints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from rich.table import Column, Table
from rich.text import Text

from pipeline.console.formats import counted, measured, printable, show
from pipeline.console.print_and_ask import show_table
from pipeline.search.halving import Choice, Curves, Difference, Round
from pipeline.search.runs import Execute, RunProcesses
from pipeline.search.search import Fork, Search, describe, total
from pipeline.search.trials import Request, Settings
from pipeline.state.owner import launch_id
from pipeline.state.record_json import finite_json
from pipeline.state.stores.errors import before_work


def run_try(request: Request, fork: Fork, *, as_json: bool, execute: Execute | None = None) -> int:
    """Do what is left of a search, and print what it has found; return 0.

    `execute` replaces `pion run` in another process. With `as_json`, nothing else is printed to
    standard output, neither here nor by the runs. Raises BadInput, Stopped if the cap over all runs
    is reached, and what ends a run.
    """
    managed, say = launch_id() is not None, partial(_say, to_stderr=as_json)
    with before_work("Nothing was started.", managed=managed):
        search = Search(request, fork, execute or RunProcesses(to_stderr=as_json), say)
    say(
        f"{counted(len(search.settings), 'setting')}, {counted(request.seeds, 'seed')} each, in "
        f"{counted(len(search.rounds), 'round')}: {search.steps:,} of the {search.grid_steps:,} "
        f"steps of the grid ({100 * search.steps / search.grid_steps:.0f} %)"
    )
    # A manager of rented machines starts this command again after an outage of the store.
    safe = before_work("Every finished run is kept.", managed=True)
    with safe if managed else contextlib.nullcontext():
        curves, choices = search.go()
        spent = total(head.spent for head in search.heads().values())
    choice = choices[request.on]
    verdicts = {source: verdict(each, search.settings, source) for source, each in choices.items()}
    # It finishes a run of the chosen setting, from its checkpoint.
    first = next(trial for trial in search.trials if trial.setting == choice.setting)
    changes = [*search.settings[choice.setting], first.seeded, f"name={first.name}"]
    command = f"pion run {shlex.join([request.path, *request.overrides, *changes])}"
    if as_json:
        result = {
            **_as_json(search, curves, choices, verdicts),
            "hours": spent.hours,
            "dollars": spent.dollars,
            "command": command,
        }
        print(finite_json(result, indent=1))
        return 0
    _show_table(search, choice, curves, "" if request.on is None else f" on {request.on}")
    show(f"{counted(len(search.trials) + len(search.trunks), 'run')}: {describe(spent)}")
    failed = [f"{name} {why}" for name, why in search.record.failed.items()]
    for line in (*failed, *verdicts.values()):
        show(line)
    show(f"to finish its run, from its checkpoint: {command}")
    return 0


def _say(text: str, *, to_stderr: bool) -> None:
    print(printable(f"try: {text}"), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def _as_json(
    search: Search,
    curves: Curves,
    choices: Mapping[str | None, Choice],
    verdicts: Mapping[str | None, str],
) -> dict[str, Any]:
    """Return what was measured and chosen as plain JSON. The first choice decides."""
    (on, choice), *_ = choices.items()
    compared = {
        source: {
            "verdict": verdicts[source],
            "others": [dataclasses.asdict(other) for other in each.others],
        }
        for source, each in choices.items()
    }
    return {
        "choice": choice.setting,
        "step": choice.step,
        "on": on,
        **compared[on],
        "sources": {source: each for source, each in compared.items() if source is not None},
        "runs": [
            {
                "run": trial.name,
                "setting": trial.setting,
                "seed": trial.seed,
                "held_out_loss": {
                    str(step): loss for step, loss in curves[trial.setting][trial.seed].items()
                },
                "failed": search.record.failed.get(trial.name),
            }
            for trial in search.trials
        ],
        "steps": search.steps,
        "grid_steps": search.grid_steps,
    }


def _show_table(search: Search, choice: Choice, curves: Curves, on: str) -> None:
    steps = [f"step {each.step:,}, {counted(each.seeds, 'seed')}" for each in search.rounds]
    columns = [Column(step, justify="right") for step in steps]
    table = Table("setting", *columns, box=None, pad_edge=False)
    for setting in (choice.setting, *(other.setting for other in choice.others)):
        cells = [setting, *(_mean(curves[setting], each) for each in search.rounds)]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    show("")
    show(f"mean held-out loss{on} ({UNIT}):")
    show_table(table)
    show("")


def _mean(by_seed: Mapping[int, Mapping[int, float]], when: Round) -> str:
    """Return a setting's mean loss at the end of a round; empty if it was not in the round."""
    losses = [by_seed[seed].get(when.step, math.nan) for seed in sorted(by_seed)[: when.seeds]]
    mean = float(np.mean(losses))
    return "" if math.isnan(mean) else f"{mean:.4f}" if math.isfinite(mean) else "diverged"


# ---------------------------------------------------------------- the verdict


UNIT = "nats per token"
# Of more settings than this, only the number is said; the table has them all.
SHOWN = 3


def verdict(choice: Choice, settings: Settings, source: str | None = None) -> str:
    """Return what is better than what, and what is noise: "pretrain.lr=2e-3 is better than 1e-3:
    −0.011 ± 0.003 nats per token at step 240; 4e-3 is noise: −0.002 ± 0.003 …". On one source, the
    chosen setting may be worse than others, all of which are named."""
    # Next to another one, a setting is called by its value alone, if one key varies.
    one_key = all(len(overrides) == 1 for overrides in settings.values())
    names = {name: name.partition("=")[2] if one_key else name for name in settings}
    sure = [other for other in choice.others if other.sure and not other.diverged]
    better = [other for other in sure if other.difference <= 0]
    noise = [other for other in choice.others if not other.sure]
    diverged = [names[other.setting] for other in choice.others if other.diverged]
    parts = [f"is worse than {_of(names, other)}" for other in sure if other.difference > 0]
    parts += [f"is better than {_of(names, other)}" for other in better[:SHOWN]]
    if len(better) > SHOWN:
        parts.append(f"is better than {len(better) - SHOWN} more")
    lowest = all(other.difference <= 0 for other in choice.others)
    parts = parts or ["is lowest" if lowest else "is not lowest"]
    begin = "" if source is None else f"on {source}: "
    clauses = [f"{begin}{choice.setting} {'; it '.join(parts)}"]
    if diverged:
        *most, last = diverged
        clauses.append(f"{', '.join(most)}{' and ' if most else ''}{last} diverged")
    if len(noise) > SHOWN:
        largest = max(noise, key=lambda other: abs(other.difference))
        clauses.append(f"the other {len(noise)} are noise, at most {_difference(largest)}")
    else:
        clauses += [f"{names[o.setting]} is noise: {_difference(o)}" for o in noise]
    return "; ".join(clauses)


def _of(names: Mapping[str, str], other: Difference) -> str:
    return f"{names[other.setting]}: {_difference(other)}"


def _difference(other: Difference) -> str:
    mean, sem = other.difference, other.sem
    value = measured(abs(mean), sem) if math.isfinite(sem) else f"{abs(mean):.3f} ± unknown"
    return f"{'−' if mean < 0 else '+'}{value} {UNIT} at step {other.step:,}"
