"""The page's summary of a run: its state, where it is, and when it will be done, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.console.formats import moment
from pipeline.report.history import Row, RunHistory
from pipeline.state.liveness import liveness
from pipeline.state.status.run_status import end_in_words, state_in_words

# The speed is that of the last rows of this many.
RECENT_ROWS = 200


def summary_of(history: RunHistory, notes: Sequence[str]) -> dict[str, Any]:
    """Return the summary. `notes` come before what the history itself has to say."""
    head, newest = history.head, _newest(history)
    stage, step = newest.get("stage"), newest.get("step")
    state = _state(history)
    return {
        "state": state,
        "owner": f"pid {head.owner.pid} on {head.owner.host}" if head.owner else None,
        "epoch": head.epoch,
        "stage": stage,
        "step": step,
        "steps": newest.get("steps"),
        "seconds_left": None if state in ("dead", "silent") else _seconds_left(history, newest),
        "loss": newest.get("loss"),
        "held_out_loss": next(
            (
                row["held_out_loss"]
                for row in reversed(history.metrics.get(stage or "", ()))
                if row.get("held_out_loss") is not None and row["step"] <= (step or 0)
            ),
            None,
        ),
        "tokens_per_second": newest.get("tokens_per_second"),
        "deadline": _deadline(history),
        "notes": [
            *notes,
            *history.remarks(),
            *_deadline_notes(history),
        ],
    }


def _state(history: RunHistory) -> str:
    """Return one of done, released, silent, dead, stopping and running."""
    head, status, now = history.head, history.status, history.now
    if head.owner is None:
        return "released" if history.finished_at is None else "done"
    age, running = status["heartbeat_age"], status["owner_running"]
    beat_at = None if age is None else now - age
    life = liveness(head, beat_at, now, history.silence, running=running).life
    if life != "alive":
        return life
    return "stopping" if status["stop"] else "running"


def _newest(history: RunHistory) -> Row:
    """Return the newest step that is known, with its stage and the stage's steps.

    The owner's heartbeat or the last row of metrics may be newer. Empty before the first step.
    """
    kept, head = history.metrics, history.head
    stage = next((stage for stage, rows in reversed([*kept.items()]) if rows), None)
    rows = kept.get(stage or "", ())
    found = {**next((row for row in reversed(rows) if "loss" in row), {}), "stage": stage}
    if head.owner is not None and rows and stage not in head.stages:
        found = _at_resume(history, rows, found)
    beat = history.status["progress"] or {}
    if head.owner is not None and beat.get("stage") in kept and "step" in beat:
        begun = stage == beat["stage"] and found.get("step", 0) >= beat["step"]
        found = {**beat, **found} if begun else dict(beat)
    return {**found, "steps": found.get("steps") or _steps_of(history, found["stage"])}


def _steps_of(history: RunHistory, stage: str | None) -> int | None:
    """Return the optimizer steps of a training stage; None if they are not known."""
    job = history.known_job
    if job is None or stage not in job.train_stages:
        return None
    section = job.section(stage)
    return section.total_steps if section.steps_are_known else None


def _at_resume(history: RunHistory, rows: Sequence[Row], newest: dict[str, Any]) -> dict[str, Any]:
    """Return the newest step as the owner found it, until the owner reports a step itself.

    Before HEAD says from which step it resumed, that is the newest checkpoint.
    """
    stage, head = newest["stage"], history.head
    if newest.get("epoch") == head.epoch:
        return newest
    reached = max((entry.step for entry in head.checkpoints if entry.stage == stage), default=0)
    found = next((r for r in reversed(rows) if "loss" in r and r["step"] <= reached), {})
    return {**found, "stage": stage, "step": reached, "tokens_per_second": None}


def _seconds_left(history: RunHistory, newest: Row) -> float | None:
    """Return how long the rest of the stage takes at the speed of the last rows; None: unknown."""
    steps, step = newest.get("steps"), newest.get("step")
    if history.head.owner is None or not steps or step is None or step >= steps:
        return None
    epoch = history.head.epoch
    rows = [r for r in history.steps(newest["stage"]) if r["epoch"] == epoch][-RECENT_ROWS:]
    if len(rows) < 2 or rows[-1]["at"] <= rows[0]["at"]:
        return None
    seconds = (rows[-1]["at"] - rows[0]["at"]) / max(1, rows[-1]["step"] - rows[0]["step"])
    return round(seconds * (steps - step))


def _deadline(history: RunHistory) -> dict[str, Any] | None:
    """Return when the run should be done, how it ended, and what its watcher saw last.

    Returns None if no deadline holds.
    """
    known, end = history.deadline or {}, history.finished_at
    if known.get("at") is None:
        return None
    saw = (known.get("watcher") or {}).get("saw")
    if end is not None:
        return {"at": known["at"], "ended": end_in_words(known["at"], end), "saw": None}
    if saw is not None:
        numbers = {name: saw[name] for name in ("slack", "reserve", "work_left")}
        saw = {"at": known["watcher"]["at"], "words": state_in_words(saw["state"]), **numbers}
    return {"at": known["at"], "ended": None, "saw": saw}


def _deadline_notes(history: RunHistory) -> list[str]:
    """Return what a person should know about the deadline; nothing if all is well."""
    known = history.deadline or {}
    if "error" in known:
        return [f"the deadline can't be read: {known['error']}"]
    if known.get("at_risk_from") is None or history.finished_at is not None:
        return []
    return [
        f"nobody watches: the deadline is at risk from {moment(known['at_risk_from'])}, unless "
        "somebody runs `pion watch`"
    ]
