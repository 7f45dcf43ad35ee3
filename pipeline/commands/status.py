"""What a run has done and who owns it, read from its store alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import duration, moment, printable, size
from pipeline.cost.by_cause import Costs, MachineCost, costs_of
from pipeline.job import STAGES
from pipeline.models.find import last_change, read_run, runs_in
from pipeline.state.owner import Owner, is_running
from pipeline.state.recorded_job import recorded_job, recorded_stages
from pipeline.state.records import CheckpointEntry, Head
from pipeline.state.rental_note import read_rental_note
from pipeline.state.requests import StopRequest, pending_stop
from pipeline.state.run_state import RunState
from pipeline.state.stores import DEFAULT_STORE, open_store


def show_status(run: str, *, as_json: bool) -> int:
    """Print a run's stages, newest checkpoint, owner and what the owner last said."""
    state, head = read_run(run)
    now = time.time()
    status, costs = run_status(state, head, now), costs_of(state, head, now)
    rental, _ = read_rental_note(state)
    if as_json:
        about = {"cost": costs.to_dict(), "rental": rental and dataclasses.asdict(rental)}
        print(json.dumps({**status, **about}, indent=1))
        return 0
    print(f"{status['run']} in {status['store']}")
    for stage, about in status["stages"].items():
        print(f"  {stage:<9} {_stage_in_words(about)}")
    print(f"newest checkpoint: {_checkpoint_in_words(status['checkpoint'])}")
    print(f"owner: {_owner_in_words(status)}")
    if rental is not None:
        print(printable(f"machines: rented from {rental.host} since {moment(rental.at)}"))
    for line in [*_cost_lines(costs), *_remarks(status)]:
        print(line)
    return 0


def show_runs(*, as_json: bool) -> int:
    """Print one line for every run in the default store, the latest last."""
    store = open_store(DEFAULT_STORE)
    runs = [
        run_status(RunState(store, name), head, time.time())
        for name, head in runs_in(store).items()
    ]
    if as_json:
        print(json.dumps(runs, indent=1))
    elif not runs:
        print(f"no runs in {store.url}; start one: pion run jobs/demo.yaml")
    else:
        width = max(len(status["run"]) for status in runs)
        for status in runs:
            done = [s for s, about in status["stages"].items() if about["state"] == "done"]
            print(
                f"{status['run']:<{width}}  done: {', '.join(done) or 'nothing'}; "
                f"newest checkpoint: {_checkpoint_in_words(status['checkpoint'])}; "
                f"owner: {_owner_in_words(status)}"
            )
    return 0


def run_status(state: RunState, head: Head, now: float) -> dict[str, Any]:
    """What the store says about a run, as plain JSON; times are Unix seconds."""
    beat = state.heartbeat(head.epoch) or {}
    notes: list[str] = []
    launch_id = head.owner.launch_id if head.owner else None
    stop = pending_stop(state, notes.append, launch_id=launch_id)
    newest = head.checkpoints[0] if head.checkpoints else None
    ours = recorded_stages(state, head)
    stages = [s for s in STAGES if ours is None or s in ours or s in head.stages]
    return {
        "run": state.name,
        "store": state.store.url,
        "epoch": head.epoch,
        "stages": {stage: _stage_status(stage, head) for stage in stages},
        "checkpoint": dataclasses.asdict(newest) if newest else None,
        "owner": dataclasses.asdict(head.owner) if head.owner else None,
        "owner_running": is_running(head.owner, Owner.me()) if head.owner else None,
        "heartbeat_age": now - beat["at"] if head.owner and "at" in beat else None,
        "heartbeats": not state.store.commits,
        "last_commit_age": now - last_change(head),
        "progress": beat.get("status") or None,
        "stop": dataclasses.asdict(stop) if stop else None,
        "spent": {"hours": head.spent.hours, "dollars": head.spent.dollars},
        "skipped": {
            stage: [dataclasses.asdict(rows) for rows in skipped]
            for stage, skipped in head.skipped.items()
        },
        "notes": notes,
    }


def show_checkpoints(run: str, *, verify: bool, as_json: bool) -> int:
    """Print a run's checkpoints, newest first; exit code 1 if one turns out to be damaged."""
    state, head = read_run(run)
    problems = {entry.key: _problem(state, entry) if verify else None for entry in head.checkpoints}
    rows = [
        {
            "stage": entry.stage,
            "step": entry.step,
            "epoch": entry.epoch,
            "at": entry.at,
            "bytes": entry.bytes,
            "verified": problems[entry.key] is None,
            "model_sha256": entry.model_sha256,
        }
        for entry in head.checkpoints
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print(f"{state.name} has no checkpoint yet")
    else:
        for entry in head.checkpoints:
            problem = problems[entry.key]
            checked = problem or ("verified now" if verify else "verified when saved")
            print(
                f"{entry.stage:<8} step {entry.step:>7,}  {moment(entry.at)}  "
                f"{size(entry.bytes):>8}  weights {entry.model_sha256[:12]}  {checked}"
            )
    return 1 if any(problems.values()) else 0


def rewrite_report(run: str, *, as_json: bool) -> int:
    """Write report.html of a run again from what its store holds, and print where it is.

    That of a remote run is put into the working directory too.
    """
    state, head = read_run(run)
    job = recorded_job(state, head)
    if job is None:
        raise BadInput(f"run {state.name} has no record of its job, so there is nothing to report")
    from pipeline.report.of_run import write_run_report

    path = write_run_report(job, state)
    if state.store.local_path(state.name) is None:
        path = Path(shutil.copyfile(path, f"{state.name}-report.html"))
    print(json.dumps({"report": str(path)}) if as_json else path)
    return 0


def _problem(state: RunState, entry: CheckpointEntry) -> str | None:
    from pipeline.state.checkpoints.restore import check_entry
    from pipeline.state.scratch import scratch_workspace
    from pipeline.state.workspace import Workspace

    with scratch_workspace(Workspace(state.store, state.name)) as workspace:
        return check_entry(workspace, entry)


def _stage_status(stage: str, head: Head) -> dict[str, Any]:
    record = head.stages.get(stage)
    entries = [entry for entry in head.checkpoints if entry.stage == stage]
    status: dict[str, Any] = {"state": "todo", "at": None, "digest": None, "step": None}
    if entries:
        newest = entries[0]
        status |= {"state": "begun", "at": newest.at, "digest": newest.digest, "step": newest.step}
    if record is not None:
        status |= {"state": "done", "at": record.at, "digest": record.digest}
    return status


def _stage_in_words(about: dict[str, Any]) -> str:
    if about["state"] == "todo":
        return "not begun"
    step = f" at step {about['step']:,}" if about["step"] is not None else ""
    return f"{about['state']}{step}, {moment(about['at'])}, digest {about['digest']}"


def _checkpoint_in_words(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "none"
    age = duration(time.time() - entry["at"])
    return f"{entry['stage']} step {entry['step']:,}, {age} ago, {size(entry['bytes'])}"


def _owner_in_words(status: dict[str, Any]) -> str:
    owner = status["owner"]
    if owner is None:
        return "nobody (released)"
    words = f"pid {owner['pid']} on {owner['host']}, epoch {status['epoch']}"
    running = status["owner_running"]
    if running is not None:
        words += ", running" if running else ", dead"
    age = status["heartbeat_age"]
    if age is not None:
        words += f", heartbeat {duration(age)} ago"
    elif status["heartbeats"]:
        words += ", no heartbeat"
    else:
        commit = duration(status["last_commit_age"])
        words += f", no heartbeat on this store; last commit {commit} ago"
    progress = status["progress"]
    if progress and "step" in progress:
        steps = f"/{progress['steps']:,}" if progress.get("steps") else ""
        words += f"; {progress.get('stage')} step {progress['step']:,}{steps}"
        if progress.get("loss") is not None:
            words += f", loss {progress['loss']:.4f}"
        if progress.get("tokens_per_second"):
            words += f", {progress['tokens_per_second']:,.0f} tokens/s"
    return printable(words)


def _cost_lines(costs: Costs) -> list[str]:
    """What the run took, and each rented machine's part of it."""
    if not costs.machines:
        return []
    lines = [f"{'time' if costs.dollars is None else 'cost'}: {costs.describe()}"]
    for machine in costs.machines:
        if machine.rented:
            lines.append(printable(f"  {moment(machine.begin)}  {_machine_in_words(machine)}"))
    return lines


def _machine_in_words(machine: MachineCost) -> str:
    words = [f"{machine.describe()}: {duration(3600 * machine.hours)}"]
    if machine.dollars is not None:
        words.append(f"${machine.dollars:.2f} at ${machine.price or 0.0:.2f}/h")
    if machine.to_first_step is not None:
        waited = f"first step {duration(machine.to_first_step)} after it was paid for"
        words.append(waited + machine.phases_in_words())
    return ", ".join(words)


def _remarks(status: dict[str, Any]) -> list[str]:
    """What not every run has: a request to stop, rows left out."""
    lines = []
    if status["stop"]:
        lines.append(f"asked to stop: {StopRequest(**status['stop']).describe()}")
    for stage, skipped in status["skipped"].items():
        lines += [
            f"left out: {stage} rows {rows['first']:,} to {rows['stop'] - 1:,} "
            f"(step {rows['step']:,}: {printable(rows['why'])})"
            for rows in skipped
        ]
    return lines + status["notes"]
