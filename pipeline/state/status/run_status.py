"""What a run has done, who owns it, how its last attempt ended, and whether its deadline is met, as
far as its store knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import duration, moment, printable
from pipeline.job import STAGES
from pipeline.machine.rented import AT_HOME, END, RENTED
from pipeline.state.head import Head
from pipeline.state.liveness import last_change
from pipeline.state.notes.deadline import read_deadline
from pipeline.state.notes.stop_requests import pending_stop
from pipeline.state.notes.watcher_beat import Saw, WatcherBeat, nobody_watches, read_beat
from pipeline.state.owner import Owner, is_running
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import recorded_stages


def run_status(state: RunState, head: Head, now: float) -> dict[str, Any]:
    """Return what the store knows about a run, as plain JSON. Times are Unix seconds."""
    beat = state.heartbeat(head.epoch)
    notes: list[str] = []
    stop = pending_stop(state, notes.append, launch_id=head.owner.launch_id if head.owner else None)
    newest = head.checkpoints[0] if head.checkpoints else None
    ours = recorded_stages(state, head, notes.append)
    names = [s for s in STAGES if ours is None or s in ours or s in head.stages]
    stages = {stage: _stage_status(stage, head) for stage in names}
    next_stage = next((stage for stage in names if stage not in head.stages), None)
    return {
        "run": state.name,
        "store": state.store.url,
        "epoch": head.epoch,
        "stages": stages,
        "next": next_stage,
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
            for stage, skipped in head.left_out.items()
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
        status["result"] = {n: v for n, v in record.result.items() if isinstance(v, float)}
    return status


# ---------------------------------------------------------------- how its last attempt ended


def last_end(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the event of the error with which the last attempt ended; None if there is none, or a
    later attempt has begun. A process that was killed, or lost its machine, leaves none."""
    newest = [event for event in events if event["event"] in (AT_HOME, RENTED, END)][-1:]
    return newest[0] if newest and newest[0]["event"] == END else None


def last_end_in_words(end: Mapping[str, Any]) -> str:
    """Return when, where and why an attempt ended."""
    step = f" step {end['step']:,}" if "step" in end else ""
    where = f"exit code {end['code']}" + (f", in {end['stage']}{step}" if "stage" in end else "")
    sentence = f"the last attempt ended at {moment(end['at'])} with {where}: {end['message']}"
    return printable(sentence)


# ---------------------------------------------------------------- its deadline

# What a run does, by the state that its watcher saw.
_STATES = {
    "spot": "on a spot machine",
    "waiting": "waiting for a spot machine",
    "arming": "requesting a machine on demand",
    "on demand": "on a machine on demand",
    "late": "too late for the deadline, so on demand to the end",
    "done": "nothing is left to do",
}


def deadline_of(
    state: RunState, head: Head | None, now: float
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return a run's deadline as plain JSON, and what there is to say about it, in lines.

    If the run never had one, these are None and no lines. Raises StoreError.
    """
    try:
        record = read_deadline(state)
    except BadInput as error:
        return {"error": str(error)}, [f"the deadline can't be read: {error}"]
    if record is None:
        return None, []
    beat = read_beat(state)
    finished_at: float | None = None
    if head is not None and is_finished(state, head):
        finished_at = max((stage.at for stage in head.stages.values()), default=None)
    silent = nobody_watches(state, beat, now)
    over = record.at is None or finished_at is not None
    as_json = {
        **dataclasses.asdict(record),
        "finished_at": finished_at,
        "met": None if record.at is None or finished_at is None else finished_at <= record.at,
        "watcher": beat and dataclasses.asdict(beat),
        "watched": not silent,
        "at_risk_from": beat.risk_at if beat is not None and silent and not over else None,
    }
    sentence = f"deadline: {record.describe(now)}"
    if record.at is None:
        return as_json, [f"{sentence}; {record.describe_author()}"]
    if finished_at is not None:
        met = end_in_words(record.at, finished_at)
        return as_json, [f"deadline: {moment(record.at)}, {met}"]
    sentence += f", margin {duration(record.margin)}; {record.describe_author()}"
    return as_json, [sentence, *_watcher_lines(state, beat, now)]


def end_in_words(at: float, finished_at: float) -> str:
    """Return `met, 3 h 02 min early` or `missed by 2 h 06 min` of a deadline at `at`."""
    left = at - finished_at
    return f"met, {duration(left)} early" if left >= 0 else f"missed by {duration(-left)}"


def state_in_words(state: str) -> str:
    """Return what a run does, in words. A state of a newer pion is its own word."""
    return _STATES.get(state, printable(state[:40]))


def _in_words(saw: Saw | None) -> str:
    """Say what a watcher that knows deadlines saw."""
    if saw is None:
        return "the watcher requests nothing for the deadline: its window says why"
    sentence = state_in_words(saw["state"])
    if saw["work_left"] > 0:
        slack = f"{duration(saw['slack'])} of slack" if saw["slack"] > 0 else "no slack"
        sentence += (
            f"; {duration(saw['work_left'])} of work left, {slack}, "
            f"{duration(saw['reserve'])} kept in reserve"
        )
    return sentence


def _watcher_lines(state: RunState, beat: WatcherBeat | None, now: float) -> list[str]:
    """Say what the watcher saw, who watches the run, and what follows for the deadline if nobody
    does."""
    start = f"pion watch {state.url}"
    if beat is None:
        return [f"no watcher has been seen. On the machine that rented, start one: {start}"]
    who = printable(f"{beat.by.describe()} (pion {beat.pion})")
    if beat.too_old():
        return [
            f"the watcher, {who}, is too old to know this deadline. Update pion there, and start "
            f"it again: {start}"
        ]
    age = duration(now - beat.at)
    lines = [f"{_in_words(beat.saw)} ({age} ago)"]
    if not nobody_watches(state, beat, now):
        return [*lines, f"watched by {who}, last sign of life {age} ago"]
    lines.append(f"nobody has watched for {age}; the last was {who}. Start it again: {start}")
    if beat.risk_at is not None:
        lines.append(f"at risk from {moment(beat.risk_at)}, unless somebody watches")
    return lines
