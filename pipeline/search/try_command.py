"""`pion try`: what it prints."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from pipeline.console.formats import counted, measured, printable, show
from pipeline.console.print_and_ask import show_table
from pipeline.search.cap import Cap, describe
from pipeline.search.halving import Choice, Difference, Round
from pipeline.search.runs import Runs, between_runs
from pipeline.search.search import Fork, Outcome, Search
from pipeline.search.vary import Comparison, Setting
from pipeline.state.owner import launch_id
from pipeline.state.record_json import finite_json
from pipeline.state.stores.errors import before_work


def run_try(runs: Runs, settings: Sequence[Setting], how: Comparison, cap: Cap, fork: Fork) -> int:
    """Do what is left of a search over settings, and print what it found; return 0.

    Raises BadInput, Stopped if the cap over all runs is reached, and what ends a run.
    """
    with before_work("Nothing was started.", managed=launch_id() is not None):
        search = Search(runs, settings, how, cap, fork)
    runs.say(
        f"{counted(len(settings), 'setting')}, {counted(how.seeds, 'seed')} each, in "
        f"{counted(len(search.rounds), 'round')}: {search.steps:,} of the {search.grid_steps:,} "
        f"steps of the grid ({100 * search.steps / search.grid_steps:.0f} %)"
    )
    with between_runs():
        found = search.go()
    # It finishes a run of the chosen setting, from its checkpoint.
    first = next(t for t in search.trials if t.setting.name == found.choice.setting)
    words = [runs.job_path, *runs.overrides, *first.setting.overrides, first.seeded]
    command = f"pion run {shlex.join([*words, f'name={first.name}'])}"
    said = {how.on: verdict(found.choice, settings, how.on)}
    said |= {one: verdict(choice, settings, one) for one, choice in found.by_source.items()}
    if runs.as_json:
        print(finite_json(_as_json(search, found, said, command), indent=1))
    else:
        _show(search, found, said, command)
    return 0


def _show(search: Search, found: Outcome, said: Mapping[str | None, str], command: str) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("setting")
    for one in search.rounds:
        table.add_column(f"step {one.step:,}, {counted(one.seeds, 'seed')}", justify="right")
    order = [found.choice.setting, *(d.setting for d in found.choice.others)]
    for setting in order:
        cells = [setting, *(_mean(found, setting, one) for one in search.rounds)]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    show("")
    show(f"mean held-out loss{'' if search.on is None else f' on {search.on}'} ({UNIT}):")
    show_table(table)
    show("")
    runs = len(search.trials) + len(search.trunks)
    show(f"{counted(runs, 'run')}: {describe(found.spent)}")
    for name, why in found.failed.items():
        show(f"{name} {why}")
    for line in said.values():
        show(line)
    show(f"to finish its run, from its checkpoint: {command}")


def _mean(found: Outcome, setting: str, one: Round) -> str:
    """Return the mean loss of a setting at the end of a round; empty if it was not in the round."""
    curves = found.curves[setting]
    values = [curves[seed].get(one.step) for seed in sorted(curves)[: one.seeds]]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean = float(np.mean(known))
    return f"{mean:.4f}" if math.isfinite(mean) else "diverged"


def _as_json(
    search: Search, found: Outcome, said: Mapping[str | None, str], command: str
) -> dict[str, Any]:
    """Return what was found as plain JSON."""
    choice = found.choice
    return {
        "choice": choice.setting,
        "step": choice.step,
        "on": search.on,
        "verdict": said[search.on],
        "others": _others(choice),
        "sources": {
            source: {"verdict": said[source], "others": _others(own)}
            for source, own in found.by_source.items()
        },
        "runs": [
            {
                "run": trial.name,
                "setting": trial.setting.name,
                "seed": trial.seed,
                "held_out_loss": {
                    str(step): loss
                    for step, loss in found.curves[trial.setting.name][trial.seed].items()
                },
                "failed": found.failed.get(trial.name),
            }
            for trial in search.trials
        ],
        "steps": search.steps,
        "grid_steps": search.grid_steps,
        "hours": found.spent.hours,
        "dollars": found.spent.dollars,
        "command": command,
    }


def _others(choice: Choice) -> list[dict[str, Any]]:
    return [
        {
            "setting": d.setting,
            "step": d.step,
            "difference": d.mean,
            "sem": d.sem,
            "sure": d.sure,
            "diverged": d.diverged,
        }
        for d in choice.others
    ]


# ---------------------------------------------------------------- the verdict


UNIT = "nats per token"
# Of more settings than this, only the number is said; the table has them all.
SHOWN = 3


def verdict(choice: Choice, settings: Sequence[Setting], source: str | None = None) -> str:
    """Return what is better than what, and what is noise: "pretrain.lr=2e-3 is better than 1e-3:
    −0.011 ± 0.003 nats per token at step 240; 4e-3 is noise: −0.002 ± 0.003 …". On one source, the
    chosen setting may be worse than others, all of which are named."""
    # Next to another one, a setting is called by its values alone, if one key varies.
    one_key = all(len(setting.overrides) == 1 for setting in settings)
    words = {s.name: s.values if one_key else s.name for s in settings}
    sure = [d for d in choice.others if d.sure and not d.diverged]
    better = [d for d in sure if d.mean <= 0]
    noise = [d for d in choice.others if not d.sure]
    diverged = [words[d.setting] for d in choice.others if d.diverged]
    parts = [f"is worse than {words[d.setting]}: {_difference(d)}" for d in sure if d.mean > 0]
    parts += [f"is better than {words[d.setting]}: {_difference(d)}" for d in better[:SHOWN]]
    if len(better) > SHOWN:
        parts.append(f"is better than {len(better) - SHOWN} more")
    lowest = "is lowest" if all(d.mean <= 0 for d in choice.others) else "is not lowest"
    begin = "" if source is None else f"on {source}: "
    parts = [f"{begin}{choice.setting} {'; it '.join(parts) if parts else lowest}"]
    if diverged:
        parts.append(f"{_and(diverged)} diverged")
    return "; ".join([*parts, *_noise(noise, words)])


def _noise(noise: Sequence[Difference], words: dict[str, str]) -> list[str]:
    """Return a clause about the settings that nothing tells from the chosen one, if there are."""
    if not noise:
        return []
    if len(noise) > SHOWN:
        most = max(noise, key=lambda d: abs(d.mean))
        return [f"the other {len(noise)} are noise, at most {_difference(most)}"]
    return [f"{words[d.setting]} is noise: {_difference(d)}" for d in noise]


def _difference(difference: Difference) -> str:
    mean, sem = difference.mean, difference.sem
    value = measured(abs(mean), sem) if math.isfinite(sem) else f"{abs(mean):.3f} ± unknown"
    return f"{'−' if mean < 0 else '+'}{value} {UNIT} at step {difference.step:,}"


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
