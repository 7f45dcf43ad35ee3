"""What the page shows of a run, as JSON. Times are Unix seconds.

Texts come from a store, so control characters and secrets of this machine are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console.formats import duration, money, printable, short_amount
from pipeline.console.masking import known_secrets, masked
from pipeline.cost.costs import USEFUL, Costs
from pipeline.report.cleaning import cleaning_sections
from pipeline.report.curves import attempts, names_of
from pipeline.report.history import Row, RunHistory
from pipeline.report.page_sections import measured_sections, record_sections
from pipeline.report.page_summary import summary_of
from pipeline.state.record_json import Damaged

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
    cleaned: dict[str, Any] = _clean(parts, known_secrets())
    for event in cleaned["events"]:  # cut last: half a secret would not be recognized
        event["text"] = _short(event["text"], MOST_OF_AN_EVENT)
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
    return {stage: job.section(stage).global_batch * job.seq_len(stage) for stage in stages if job}


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
    newest = sorted(events, key=lambda event: event["at"])[: -MOST_EVENTS - 1 : -1]
    return [
        {"at": event["at"], "event": event["event"], "text": _in_words(event)} for event in newest
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


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _clean(value: Any, secrets: Mapping[str, str]) -> Any:
    """Return `value` with every text in it made safe to show, and not too long."""
    if isinstance(value, str):
        return _short(masked(printable(value), secrets), MOST_CHARACTERS)
    if isinstance(value, Mapping):
        return {_clean(key, secrets): _clean(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, secrets) for item in value]
    return value
