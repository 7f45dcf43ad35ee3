"""What the page shows of a run apart from its curves, as JSON. Times are Unix seconds.

Texts come from a store, so control characters and secrets of this machine are replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console.formats import duration, printable
from pipeline.console.masking import masked
from pipeline.cost.costs import USEFUL, Costs, RunLog
from pipeline.report.curves import Row, attempts
from pipeline.report.deadline_part import deadline_notes, deadline_part
from pipeline.report.settings import Settings
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.stop_requests import StopRequest

MOST_EVENTS = 200
MOST_SAMPLES = 60
MOST_CHARACTERS = 2000
# Fields of an event that the page shows elsewhere, or that say nothing to a person.
_NOT_IN_WORDS = ("event", "epoch", "at", "session", "started_at", "rented_at")
# The speed is that of the last rows of this many.
RECENT_ROWS = 200


@dataclasses.dataclass(frozen=True)
class Look:
    """What was read of a run at the moment `now`.

    `status` is that of `pipeline.state.run_status.run_status`, `deadline` that of
    `pipeline.state.deadline_status.deadline_json`. `kept` are each stage's rows that lead to its
    present state.
    """

    state: RunState
    head: Head
    now: float
    status: Mapping[str, Any]
    log: RunLog
    kept: Mapping[str, Sequence[Row]]
    costs: Costs
    settings: Settings
    deadline: Mapping[str, Any] | None = None


def parts_of(look: Look) -> dict[str, Any]:
    """Return the parts of the page by name."""
    parts = {
        "summary": _summary(look),
        "stages": _stages(look),
        "attempts": {stage: attempts(rows) for stage, rows in look.kept.items() if rows},
        "cost": _cost(look.costs),
        "machines": _machines(look.costs),
        "samples": _samples(look.kept),
        "checkpoints": _checkpoints(look.head, look.kept),
        "events": _events(look.log.events),
    }
    cleaned: dict[str, Any] = _clean(parts)
    return cleaned


def _summary(look: Look) -> dict[str, Any]:
    status, head = look.status, look.head
    beat = status["heartbeat_age"]
    age = status["last_commit_age"] if beat is None else beat
    newest = _newest(look)
    stage, step = newest.get("stage"), newest.get("step")
    state = _state(look, age)
    missing = look.log.unreadable.describe()
    return {
        "state": state,
        "owner": f"pid {head.owner.pid} on {head.owner.host}" if head.owner else None,
        "epoch": head.epoch,
        # To the second: a difference of clocks must not look like news.
        "sign_of_life": round(look.now - age),
        "stage": stage,
        "step": step,
        "steps": newest.get("steps"),
        "seconds_left": None if state in ("dead", "silent") else _seconds_left(look, newest),
        "loss": newest.get("loss"),
        "held_out_loss": _last_value(
            [row for row in look.kept.get(stage or "", ()) if row["step"] <= (step or 0)],
            "held_out_loss",
        ),
        "tokens_per_second": newest.get("tokens_per_second"),
        "stop": StopRequest(**status["stop"]).describe() if status["stop"] else None,
        "deadline": deadline_part(look.deadline, look.status),
        "notes": [
            *status["notes"],
            *deadline_notes(look.deadline, look.status),
            *([missing] if missing else []),
            *_left_out(head),
        ],
    }


def _state(look: Look, age: float) -> str:
    """Return one of done, released, silent, dead, stopping and running."""
    status = look.status
    if look.head.owner is None:
        done = all(about["state"] == "done" for about in status["stages"].values())
        return "done" if done else "released"
    if status["owner_running"] is False:
        return "dead"
    if status["owner_running"] is None and age > look.state.silence:
        return "silent"
    return "stopping" if status["stop"] else "running"


def _newest(look: Look) -> Row:
    """Return the newest step that is known, with its stage and the stage's steps.

    The owner's heartbeat or the last row of metrics may be newer. Empty before the first step.
    """
    stage = next((stage for stage, rows in reversed([*look.kept.items()]) if rows), None)
    rows = look.kept.get(stage or "", ())
    found = {**next((row for row in reversed(rows) if "loss" in row), {}), "stage": stage}
    if look.head.owner is not None and rows and stage not in look.head.stages:
        found = _at_resume(look.head, rows, found)
    beat = look.status["progress"] or {}
    if look.head.owner is not None and beat.get("stage") in look.kept and "step" in beat:
        begun = stage == beat["stage"] and found.get("step", 0) >= beat["step"]
        found = {**beat, **found} if begun else dict(beat)
    return {**found, "steps": found.get("steps") or look.settings.steps.get(found["stage"] or "")}


def _at_resume(head: Head, rows: Sequence[Row], newest: dict[str, Any]) -> dict[str, Any]:
    """Return the newest step as the owner found it, until the owner reports a step itself.

    Before HEAD says from which step it resumed, that is the newest checkpoint.
    """
    stage = newest["stage"]
    if newest.get("epoch") == head.epoch:
        return newest
    reached = max((entry.step for entry in head.checkpoints if entry.stage == stage), default=0)
    found = next((r for r in reversed(rows) if "loss" in r and r["step"] <= reached), {})
    return {**found, "stage": stage, "step": reached, "tokens_per_second": None}


def _seconds_left(look: Look, newest: Row) -> float | None:
    """Return how long the rest of the stage takes at the speed of the last rows; None: unknown."""
    steps, step = newest.get("steps"), newest.get("step")
    if look.head.owner is None or not steps or step is None or step >= steps:
        return None
    epoch = look.head.epoch
    rows = [r for r in look.kept[newest["stage"]] if "loss" in r and r["epoch"] == epoch]
    rows = rows[-RECENT_ROWS:]
    if len(rows) < 2 or rows[-1]["at"] <= rows[0]["at"]:
        return None
    seconds = (rows[-1]["at"] - rows[0]["at"]) / max(1, rows[-1]["step"] - rows[0]["step"])
    return round(seconds * (steps - step))


def _last_value(rows: Sequence[Row], name: str) -> float | None:
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def _left_out(head: Head) -> list[str]:
    return [
        f"left out: {stage} rows {rows.first:,} to {rows.stop - 1:,} (step {rows.step:,}: "
        f"{rows.why})"
        for stage, skipped in head.skipped.items()
        for rows in skipped
    ]


def _stages(look: Look) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "state": about["state"], "step": about["step"], "at": about["at"]}
        for stage, about in look.status["stages"].items()
    ]


def _cost(costs: Costs) -> dict[str, Any]:
    return {
        "seconds": {cause: round(seconds, 1) for cause, seconds in costs.seconds.items()},
        "dollars_by_cause": {c: round(d, 4) for c, d in costs.dollars_by_cause.items()},
        "useful": list(USEFUL),
        "goodput": costs.goodput,
        "dollars": costs.dollars,
        "unpriced_hours": costs.unpriced_hours,
    }


def _machines(costs: Costs) -> list[dict[str, Any]]:
    return [
        {
            "what": machine.describe(),
            "id": machine.id,
            "epochs": list(machine.epochs),
            "begin": machine.begin,
            "end": machine.end,
            "hours": machine.hours,
            "price": machine.price,
            "dollars": machine.dollars,
            "to_first_step": machine.to_first_step,
        }
        for machine in costs.machines
    ]


def _samples(kept: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Return the newest texts that the model wrote, the newest first."""
    found = [
        {"stage": stage, "step": row["step"], **row["sample"]}
        for stage, rows in kept.items()
        for row in rows
        if "sample" in row
    ]
    return found[: -MOST_SAMPLES - 1 : -1]


def _checkpoints(head: Head, kept: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Return the checkpoints, the newest first, with the held-out loss of their steps if known."""
    held_out = {
        (stage, row["step"]): row["held_out_loss"]
        for stage, rows in kept.items()
        for row in rows
        if "held_out_loss" in row
    }
    finished = {record.checkpoint for record in head.stages.values()}
    return [
        {
            "stage": entry.stage,
            "step": entry.step,
            "epoch": entry.epoch,
            "at": entry.at,
            "bytes": entry.bytes,
            "held_out_loss": entry.metrics.get(
                "held_out_loss", held_out.get((entry.stage, entry.step))
            ),
            "final": entry.key in finished,
        }
        for entry in head.checkpoints
    ]


def _events(events: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the last events in words, the newest first."""
    newest = sorted(events, key=lambda event: event["at"])[: -MOST_EVENTS - 1 : -1]
    return [
        {
            "at": event["at"],
            "epoch": event["epoch"],
            "event": event["event"],
            "text": _in_words(event),
        }
        for event in newest
    ]


def _in_words(event: Row) -> str:
    """Return what an event says beyond its kind: `stage pretrain, from step 0, device CPU`."""
    if event["event"] == "phase":
        return f"{event['name']}: {duration(event['seconds'])}"
    shown = []
    for key, value in event.items():
        if key in _NOT_IN_WORDS or value in (None, {}, []):
            continue
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif key in ("stall", "write") and isinstance(value, int | float):
            value = duration(value)
        elif isinstance(value, float):
            value = f"{value:.6g}"
        elif isinstance(value, list):
            value = "; ".join(map(str, value))
        elif isinstance(value, Mapping):
            value = ", ".join(f"{name} {_short(item)}" for name, item in value.items())
        shown.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(shown)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:100]


def _clean(value: Any) -> Any:
    """Return `value` with every text in it made safe to show, and not too long."""
    if isinstance(value, str):
        text = masked(printable(value[: MOST_CHARACTERS + 1]))
        return text if len(value) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
