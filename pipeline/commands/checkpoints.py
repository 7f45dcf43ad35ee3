"""`pion checkpoints`: list a run's checkpoints, and check their files again."""

from __future__ import annotations

import json

from pipeline.console.formats import moment, show, size
from pipeline.state.checkpoints.restore import check_entry
from pipeline.state.find_run import read_run
from pipeline.state.head import CheckpointEntry
from pipeline.state.run_state import RunState
from pipeline.state.workspace import Workspace, scratch_workspace


def show_checkpoints(run: str, *, verify: bool, as_json: bool) -> int:
    """Print a run's checkpoints, newest first; return 1 if `verify` finds a damaged one, else 0.

    One that the run has replaced meanwhile is left out.
    """
    state, head = read_run(run)
    problems = {entry.key: _problem(state, entry) if verify else None for entry in head.checkpoints}
    if any(problems.values()):
        listed = read_run(run)[1].listed()
        problems = {key: problem for key, problem in problems.items() if key in listed}
    entries = [entry for entry in head.checkpoints if entry.key in problems]
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
        for entry in entries
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        show(f"{state.name} has no checkpoint yet")
    else:
        for entry in entries:
            checked = problems[entry.key] or f"verified {'now' if verify else 'when saved'}"
            show(
                f"{entry.stage:<8} step {entry.step:>7,}  {moment(entry.at)}  "
                f"{size(entry.bytes):>8}  weights {entry.model_sha256[:12]}  {checked}"
            )
    return 1 if any(problems.values()) else 0


def _problem(state: RunState, entry: CheckpointEntry) -> str | None:
    with scratch_workspace(Workspace(state.store, state.name)) as workspace:
        return check_entry(workspace, entry)
