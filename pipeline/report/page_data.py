"""What the page shows of a run, as JSON. Times are Unix seconds.

Texts come from a store, so control characters and secrets of this machine are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pion.data.chat.messages import with_texts
from pipeline.console.formats import beginning, duration, moment, money, printable, short_amount
from pipeline.console.masking import known_secrets, masked
from pipeline.cost.costs import USEFUL, Costs
from pipeline.report.cleaning import cleaning_sections
from pipeline.report.curves import attempts, names_of
from pipeline.report.history import Row, RunHistory
from pipeline.report.page_sections import measured_sections, record_sections
from pipeline.report.phases import phases_in_words
from pipeline.state.liveness import liveness
from pipeline.state.record_json import Damaged
from pipeline.state.status.run_status import end_in_words, state_in_words

MOST_EVENTS = 200
MOST_SAMPLES = 60
# Of each prompt, so many samples are shown at first, evenly spread from the first to the last.
SAMPLES_AT_FIRST = 6
MOST_CHARACTERS = 20_000  # of a text
MOST_OF_AN_EVENT = 2000
# Fields of an event that the page shows elsewhere, or that say nothing to a person.
_NOT_IN_WORDS = ("event", "epoch", "at", "session", "started_at", "rented_at")
MEANS = {
    "steps": "training steps that were kept",
    "stages": "preparing, evaluating, publishing",
    "reference": "what the model gives for preferences before it learns from them",
    "boot": "until the first step",
    "restore": "reading a checkpoint back",
    "recompute": "repeated steps",
    "lost": "no step until its process died: a hang, or work in flight",
    "stall": "waiting between steps, as for saves",
    "idle": "a rented machine did nothing",
}


def page_data(history: RunHistory) -> dict[str, Any]:
    """Return everything that the page shows of a run, by name, except the points of its curves.

    A damaged result is a note.
    """
    results: Mapping[str, Any] = {}
    published: Mapping[str, Any] = {}
    text: Mapping[str, Any] = {}
    notes: list[str] = []
    try:
        results, published, text = history.results, history.published, history.text
    except Damaged as error:
        notes.append(str(error))
    parts = {
        "name": history.name,
        "url": history.url,
        "summary": summary_of(history, notes),
        "figures": _figures(history, results, published),
        "metrics": {stage: names_of(rows) for stage, rows in history.metrics.items()},
        "attempts": {stage: attempts(rows) for stage, rows in history.metrics.items() if rows},
        "borders": {"pretrain": phases_in_words(history.known_job)[1:]},
        "tokens_per_step": _tokens_per_step(history),
        "paid": [(time.begin, time.end, time.price) for time in history.costs.paid],
        "measured": [*measured_sections(history, results), *cleaning_sections(text)],
        "samples": _samples(history.samples()),
        "cost": _cost(history.costs),
        "machines": _machines(history.costs),
        "checkpoints": _checkpoints(history),
        "record": record_sections(history, published),
        "events": _events(history.events),
    }
    secrets = known_secrets()
    cleaned: dict[str, Any] = with_texts(
        parts, lambda text: beginning(masked(printable(text), secrets), MOST_CHARACTERS)
    )
    for event in cleaned["events"]:  # cut last: half a secret would not be recognized
        event["text"] = beginning(event["text"], MOST_OF_AN_EVENT)
    return cleaned


def _figures(
    history: RunHistory, results: Mapping[str, Any], published: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return (name, value) of the numbers about the whole run at the top of the page."""
    job, costs = history.known_job, history.costs
    figures: list[tuple[str, str]] = []
    if parameters := published.get("parameters"):
        figures.append(("Parameters", short_amount(parameters)))
    if job is not None:
        tokens = sum(
            row["step"] * per_step
            for stage, per_step in _tokens_per_step(history).items()
            for row in history.steps(stage)[-1:]
        )
        if tokens:
            figures.append(("Tokens trained on", short_amount(tokens)))
        measured = results.get(job.train_stages[-1]) or {}
        if measured.get("bits_per_byte") is not None:
            figures.append(("Bits per byte", f"{measured['bits_per_byte']:.3f}"))
    if costs.goodput is not None:
        figures.append(("Time", duration(3600 * costs.hours)))
        if costs.dollars is not None:
            figures.append(("Cost", money(costs.dollars)))
        figures.append(("Useful time", f"{100 * costs.goodput:.1f} %"))
    return figures


def _tokens_per_step(history: RunHistory) -> dict[str, int]:
    """Return how many tokens the rows of a step have, by training stage, if the job is known."""
    job = history.known_job
    stages = () if job is None else job.train_stages
    lengths = {stage: job.seq_len(stage) for stage in stages if job}
    return {stage: job.section(stage).rows_of_step(n) * n for stage, n in lengths.items() if job}


def _cost(costs: Costs) -> dict[str, Any]:
    return {
        "words": costs.describe(),
        "dollars": costs.dollars,
        "causes": [
            {
                "cause": cause,
                "means": MEANS[cause],
                "seconds": round(seconds, 1),
                "dollars": round(costs.dollars_by_cause[cause], 4),
            }
            for cause, seconds in costs.seconds.items()
            if seconds > 0
        ],
    }


def _machines(costs: Costs) -> list[dict[str, Any]]:
    return [
        {
            "what": machine.describe(),
            "begin": machine.begin,
            "end": machine.end,
            "hours": machine.hours,
            "useful": sum(machine.seconds[cause] for cause in USEFUL) / (3600 * machine.hours or 1),
            "price": machine.price,
            "dollars": machine.dollars,
            "to_first_step": machine.to_first_step,
            "phases": machine.phases_in_words(),
        }
        for machine in costs.machines
    ]


def _samples(samples: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the newest texts that the model wrote, and the spread ones, each with its prompt.

    Texts of a prompt stand together, the newest first.
    """
    prompts = dict.fromkeys(sample["prompt"] for sample in samples)
    by_prompt = [[one for one in samples if one["prompt"] == prompt] for prompt in prompts]
    first = {id(one) for same in by_prompt for one in _spread(same, SAMPLES_AT_FIRST)}
    shown = first | {id(one) for one in samples[-MOST_SAMPLES:]}
    return [
        {**one, "first": id(one) in first}
        for same in by_prompt
        for one in reversed(same)
        if id(one) in shown
    ]


def _spread(samples: Sequence[Row], count: int) -> list[Row]:
    """Return at most `count` samples, evenly spread, the first and the last included."""
    if len(samples) <= count:
        return list(samples)
    return [samples[round(i * (len(samples) - 1) / (count - 1))] for i in range(count)]


def _checkpoints(history: RunHistory) -> list[dict[str, Any]]:
    """Return the checkpoints, the newest first, with the held-out loss of their steps if known."""
    held_out = {
        (stage, row["step"]): row["held_out_loss"]
        for stage, rows in history.metrics.items()
        for row in rows
        if "held_out_loss" in row
    }
    finished = {record.checkpoint for record in history.head.stages.values()}
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
        for entry in history.head.checkpoints
    ]


def _events(events: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the last events in words, the newest first."""
    return [
        {"at": event["at"], "event": event["event"], "text": _in_words(event)}
        for event in sorted(events, key=lambda event: event["at"])[: -MOST_EVENTS - 1 : -1]
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
        elif key in ("stall", "copy", "write") and isinstance(value, int | float):
            value = duration(value)
        elif isinstance(value, float):
            value = f"{value:.6g}"
        elif isinstance(value, list):
            value = "; ".join(map(str, value))
        elif isinstance(value, Mapping):
            value = ", ".join(
                f"{name} {f'{item:.4g}' if isinstance(item, float) else str(item)[:100]}"
                for name, item in value.items()
            )
        shown.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(shown)


# ---------------------------------------------------------------- the summary


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
        "notes": [*dict.fromkeys([*notes, *history.remarks()]), *_deadline_notes(history)],
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
    metrics, head = history.metrics, history.head
    stage = next((stage for stage, rows in reversed([*metrics.items()]) if rows), None)
    rows = metrics.get(stage or "", ())
    newest = {**next((row for row in reversed(rows) if "loss" in row), {}), "stage": stage}
    if head.owner is not None and rows and stage not in head.stages:
        newest = _at_resume(history, rows, newest)
    beat = history.status["progress"] or {}
    if head.owner is not None and beat.get("stage") in metrics and "step" in beat:
        begun = stage == beat["stage"] and newest.get("step", 0) >= beat["step"]
        newest = {**beat, **newest} if begun else dict(beat)
    return {**newest, "steps": newest.get("steps") or _steps_of(history, newest["stage"])}


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
    deadline, end = history.deadline or {}, history.finished_at
    if deadline.get("at") is None:
        return None
    saw = (deadline.get("watcher") or {}).get("saw")
    if end is not None:
        return {"at": deadline["at"], "ended": end_in_words(deadline["at"], end), "saw": None}
    if saw is not None:
        numbers = {name: saw[name] for name in ("slack", "reserve", "work_left")}
        saw = {"at": deadline["watcher"]["at"], "words": state_in_words(saw["state"]), **numbers}
    return {"at": deadline["at"], "ended": None, "saw": saw}


def _deadline_notes(history: RunHistory) -> list[str]:
    """Return what a person should know about the deadline; nothing if all is well."""
    deadline = history.deadline or {}
    if "error" in deadline:
        return [f"the deadline can't be read: {deadline['error']}"]
    if deadline.get("at_risk_from") is None or history.finished_at is not None:
        return []
    return [
        f"nobody watches: the deadline is at risk from {moment(deadline['at_risk_from'])}, unless "
        "somebody runs `pion watch`"
    ]
