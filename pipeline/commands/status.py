"""`pion status`: print what runs have done and who owns them. Reads only their stores."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import counted, duration, moment, money, printable, show, size
from pipeline.cost.costs import Costs, MachineCost
from pipeline.report.reading import read_history
from pipeline.state.find_run import open_run, runs_in
from pipeline.state.notes.rental_note import read_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.status.run_status import run_status
from pipeline.state.stores import DEFAULT_STORE, open_store
from pipeline.state.stores.base import read_all

# In the name of each run of a search, after that of its job (pipeline/search/vary.py).
OF_TRY = "-try-"


def show_statuses(runs: Sequence[str], *, as_json: bool) -> None:
    """Print the status of each run: for a person, or as JSON (several runs as a list)."""
    if as_json:
        statuses = [_status_json(run) for run in runs]
        print(json.dumps(statuses if len(statuses) > 1 else statuses[0], indent=1))
        return
    for number, run in enumerate(runs):
        if number:
            show("")
        _show_status(run)


def _status_json(run: str) -> dict[str, Any]:
    state = open_run(run)
    history = read_history(state)
    rental, _ = read_rental_note(state)
    return {
        **history.status,
        "end": history.end,
        "cost": history.costs.to_dict(),
        "rental": rental and dataclasses.asdict(rental),
        "deadline": history.deadline,
        "unreadable_rows": history.unreadable.count,
    }


def _show_status(run: str) -> None:
    """Print a run's stages, newest checkpoint and owner, and what the owner last reported."""
    state = open_run(run)
    history = read_history(state)
    status = history.status
    rental, _ = read_rental_note(state)
    show(f"{status['run']} in {status['store']}")
    for stage, about in status["stages"].items():
        show(f"  {stage:<9} {_stage_in_words(about)}")
    if status["next"] is not None:
        show(f"next: {status['next']}")
    show(f"newest checkpoint: {_checkpoint_in_words(status['checkpoint'])}")
    show(f"owner: {_owner_in_words(status)}")
    if status["owner_running"] is False:
        job = next((each["job"] for each in reversed(history.events) if "job" in each), "JOB")
        show(printable(f"Nothing that was committed is lost. To resume, run: pion run {job}"))
    if rental is not None:
        show(f"machines: rented from {rental.host} since {moment(rental.at)}")
    for line in (*history.deadline_lines, *_cost_lines(history.costs), *history.remarks()):
        show(line)


def show_runs(*, as_json: bool) -> None:
    """Print one line for every run in the default store, latest last.

    Raises the BadInput of a run that can't be read, after all others were printed.
    """
    store = open_store(DEFAULT_STORE)
    unreadable: dict[str, BadInput] = {}
    heads = list(runs_in(store, unreadable).items())
    runs = read_all(lambda run: run_status(RunState(store, run[0]), run[1], time.time()), heads)
    if as_json:
        print(json.dumps(runs, indent=1))
    elif not runs and not unreadable:
        show(f"no runs in {store.url}; start one: pion run jobs/demo.yaml")
    else:
        searched = Counter(run["run"].partition(OF_TRY)[0] for run in runs if OF_TRY in run["run"])
        runs = [run for run in runs if OF_TRY not in run["run"]]
        width = max((len(n) for n in (*unreadable, *(run["run"] for run in runs))), default=0)
        for name in unreadable:
            show(f"{name:<{width}}  can't be read")
        for status in runs:
            done = [s for s, about in status["stages"].items() if about["state"] == "done"]
            show(
                f"{status['run']:<{width}}  done: {', '.join(done) or 'nothing'}; "
                f"newest checkpoint: {_checkpoint_in_words(status['checkpoint'])}; "
                f"owner: {_owner_in_words(status)}"
            )
        for job, count in searched.items():
            show(f"{job}{OF_TRY}…: {counted(count, 'run')} of `pion try`, in {store.url}")
    for error in unreadable.values():
        raise error


# What is shown of the result of a stage: the first of these that it has.
_MEASURES = {
    "held_out_reward": "held-out reward",
    "held_out_accuracy": "held-out accuracy",
    "held_out_loss": "held-out loss",
}


def _stage_in_words(about: dict[str, Any]) -> str:
    if about["state"] == "todo":
        return "not started"
    step = f" at step {about['step']:,}" if about["step"] is not None else ""
    state = "done" if about["state"] == "done" else "in progress"
    result = about.get("result", {})
    measured = [
        f", {label} {result[name]:.3f}" for name, label in _MEASURES.items() if name in result
    ]
    return f"{state}{step}, {moment(about['at'])}{''.join(measured[:1])}"


def _checkpoint_in_words(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "none"
    age = duration(time.time() - entry["at"])
    return f"{entry['stage']} step {entry['step']:,}, {age} ago, {size(entry['bytes'])}"


def _owner_in_words(status: Mapping[str, Any]) -> str:
    owner = status["owner"]
    if owner is None:
        return "nobody (released)"
    who = f"pid {owner['pid']} on {owner['host']}"
    if status["owner_running"] is not None:
        who += ", running" if status["owner_running"] else ", dead"
    return f"{who}, {_heartbeat_in_words(status)}{_progress_in_words(status['progress'] or {})}"


def _heartbeat_in_words(status: Mapping[str, Any]) -> str:
    if status["heartbeat_age"] is not None:
        return f"heartbeat {duration(status['heartbeat_age'])} ago"
    if status["heartbeats"]:
        return "no heartbeat"
    commit = duration(status["last_commit_age"])
    return f"no heartbeat on this store; last commit {commit} ago"


def _progress_in_words(progress: Mapping[str, Any]) -> str:
    """Return what the owner last reported; empty if that was no step."""
    if "step" not in progress:
        return ""
    steps, loss = progress.get("steps"), progress.get("loss")
    speed = progress.get("tokens_per_second")
    parts = [
        f"; {progress.get('stage')} step {progress['step']:,}" + (f"/{steps:,}" if steps else ""),
        "" if loss is None else f"loss {loss:.4f}",
        f"{speed:,.0f} tokens/s" if speed else "",
    ]
    return ", ".join(filter(None, parts))


def _cost_lines(costs: Costs) -> list[str]:
    """Return lines about the cost of the run, and each rented machine's part of it."""
    if not costs.machines:
        return []
    rented = [machine for machine in costs.machines if machine.rented]
    return [
        f"{'time' if costs.dollars is None else 'cost'}: {costs.describe()}",
        *(f"  {moment(machine.begin)}  {_machine_in_words(machine)}" for machine in rented),
    ]


def _machine_in_words(machine: MachineCost) -> str:
    parts = [f"{machine.describe()}: {duration(3600 * machine.hours)}"]
    if machine.dollars is not None:
        parts.append(f"{money(machine.dollars)} at {money(machine.price or 0.0)}/h")
    if machine.to_first_step is not None:
        waited = f"first step {duration(machine.to_first_step)} after billing began"
        parts.append(waited + machine.phases_in_words())
    return ", ".join(parts)
