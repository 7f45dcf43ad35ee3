"""What a run has done and who owns it, as far as its store knows."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.job import STAGES
from pipeline.state.head import Head
from pipeline.state.liveness import last_change
from pipeline.state.owner import Owner, is_running
from pipeline.state.recorded_job import recorded_stages
from pipeline.state.run_state import RunState
from pipeline.state.stop_requests import pending_stop


def run_status(state: RunState, head: Head, now: float) -> dict[str, Any]:
    """Return what the store knows about a run, as plain JSON. Times are Unix seconds."""
    beat = state.heartbeat(head.epoch)
    notes: list[str] = []
    launch_id = head.owner.launch_id if head.owner else None
    stop = pending_stop(state, notes.append, launch_id=launch_id)
    newest = head.checkpoints[0] if head.checkpoints else None
    ours = recorded_stages(state, head, notes.append)
    stages = [s for s in STAGES if ours is None or s in ours or s in head.stages]
    return {
        "run": state.name,
        "store": state.store.url,
        "epoch": head.epoch,
        "stages": {stage: _stage_status(stage, head) for stage in stages},
        "next": next((stage for stage in stages if stage not in head.stages), None),
        "checkpoint": dataclasses.asdict(newest) if newest else None,
        "owner": dataclasses.asdict(head.owner) if head.owner else None,
        "owner_running": is_running(head.owner, Owner.me()) if head.owner else None,
        "heartbeat_age": now - beat["at"] if head.owner and beat else None,
        "heartbeats": not state.store.commits,
        "last_commit_age": now - last_change(head),
        "progress": (beat.get("status") if beat else None) or None,
        "stop": stop.status() if stop else None,
        "spent": {"hours": head.spent.hours, "dollars": head.spent.dollars},
        "skipped": {
            stage: [dataclasses.asdict(rows) for rows in skipped]
            for stage, skipped in head.skipped.items()
        },
        "notes": notes,
    }


def is_finished(state: RunState, head: Head) -> bool:
    """Return whether every stage of HEAD's job is done; False if the job can't be read."""
    stages = recorded_stages(state, head)
    return stages is not None and all(stage in head.stages for stage in stages)


def _stage_status(stage: str, head: Head) -> dict[str, Any]:
    record = head.stages.get(stage)
    newest = next((entry for entry in head.checkpoints if entry.stage == stage), None)
    status: dict[str, Any] = {"state": "todo", "at": None, "digest": None, "step": None}
    if newest is not None:
        status |= {"state": "begun", "at": newest.at, "digest": newest.digest, "step": newest.step}
    if record is not None:
        status |= {"state": "done", "at": record.at, "digest": record.digest}
    return status
