"""What a run has cost: the time paid for on each machine, by what it was spent on.

Read from the run's store alone. A process that owned the run is paid for from when its machine was
rented (at home: from when it began) until its last sign of life, and at most until the next owner's
claim. Signs are rows of metrics, its events, heartbeats, checkpoints, finished stages, and the last
change of HEAD; the process that owns the run now, if it gave one lately, is paid for until now.
A machine that never got as far as a claim was all boot, for as long as `pion launch` or
`pion watch` saw it. What one cost while nobody watched, or after its last sign, no store knows.

Each second counts once, as one of CAUSES:

    steps      optimizer steps that were kept
    stages     other work of the job: prepare, evaluations, publishing
    boot       from the rental's start until the first step begins: the machine, installing,
               imports, workers; and what the first step takes longer than a usual one (compiling)
    restore    bringing a checkpoint back, and all else between two attempts of one process
    recompute  steps that a later attempt went back behind, to be done again, and whatever else was
               begun by a process that died
    stall      training stood still between two steps, or to be saved when it was over
    idle       nobody worked on a rented machine: between two processes, or waiting for the run

Steps and stages are useful; the other five are badput.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.console.formats import duration
from pipeline.cost.lost import LostMachine, lost_machines
from pipeline.cost.timeline import (
    BOOT,
    CAUSES,
    STAGES,
    STEPS,
    Process,
    Row,
    Span,
    attempts_of,
    processes_of,
)
from pipeline.state.metrics import read_all_metrics, read_events
from pipeline.state.records import Head
from pipeline.state.run_state import SILENCE_SECONDS, RunState

USEFUL = (STEPS, STAGES)
TRAINED = ("pretrain", "sft")


@dataclass(frozen=True)
class MachineCost:
    """One machine's part, paid for from `begin` to `end` (Unix seconds); `seconds` is by cause.

    `dollars` is None if its price (dollars per hour) is not known; `unpriced_hours` are those of
    its processes without one. `to_first_step` is None if it has not trained, and counts from
    `begin`. `phases` are the seconds of what it did until then, by name; some overlap. `epochs` are
    those under which it owned the run, none if it never did.
    """

    id: str
    rented: bool
    host: str
    cloud: str | None
    region: str | None
    gpu: str | None
    count: int
    spot: bool | None
    price: float | None
    begin: float
    end: float
    seconds: Mapping[str, float]
    dollars: float | None
    unpriced_hours: float
    to_first_step: float | None
    phases: Mapping[str, float]
    epochs: tuple[int, ...]

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    def phases_in_words(self) -> str:
        """` (machine up 31 s, install 48 s, …)`: what its first step waited for; empty if that is
        not known."""
        parts = ", ".join(f"{name} {duration(s)}" for name, s in self.phases.items() if s >= 0.5)
        return f" ({parts})" if parts else ""

    def describe(self) -> str:
        """`2 × A40 on RunPod/CA, spot`; the host's name for a machine of one's own."""
        if not self.rented:
            return self.host
        gpu = self.gpu or ("unknown GPU" if self.count else "CPU")
        what = f"{self.count} × {gpu}" if self.count > 1 else gpu
        place = "/".join(filter(None, (self.cloud, self.region)))
        way = {True: ", spot", False: ", on demand", None: ""}[self.spot]
        never = "" if self.epochs else ", never trained"
        return f"{what} on {place or self.host}{way}{never}"


@dataclass(frozen=True)
class Costs:
    """All of a run's machines, by when they began, and the dollars known to have been paid."""

    machines: tuple[MachineCost, ...]
    dollars_by_cause: Mapping[str, float]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause, in the order of CAUSES."""
        return {cause: sum(m.seconds[cause] for m in self.machines) for cause in CAUSES}

    @property
    def hours(self) -> float:
        return sum(machine.hours for machine in self.machines)

    @property
    def dollars(self) -> float | None:
        """What is known to have been paid; None if no machine's price is known."""
        known = [m.dollars for m in self.machines if m.dollars is not None]
        return sum(known) if known else None

    @property
    def unpriced_hours(self) -> float:
        """Hours whose price is not known; `dollars` lacks them."""
        return sum(machine.unpriced_hours for machine in self.machines)

    @property
    def goodput(self) -> float | None:
        """The useful share of the time, 0 to 1; None before there was any."""
        seconds = self.seconds
        total = sum(seconds.values())
        return sum(seconds[cause] for cause in USEFUL) / total if total else None

    def machine_of(self, epoch: int) -> MachineCost | None:
        """The machine that owned the run under `epoch`."""
        return next((m for m in self.machines if epoch in m.epochs), None)

    def describe(self) -> str:
        """`3 h 10 min, $1.23 (87 % useful; boot 4 %, recompute 9 %)`."""
        words = [duration(3600 * self.hours)]
        if self.dollars is not None:
            words.append(f"${self.dollars:.2f}")
            if self.unpriced_hours:
                words.append(f"{duration(3600 * self.unpriced_hours)} of it without a price")
        return f"{', '.join(words)} ({self.shares()})" if self.goodput is not None else words[0]

    def shares(self) -> str:
        """`87 % useful; boot 4 %, recompute 9 %`, badput of at least half a percent."""
        total = sum(self.seconds.values()) or 1.0
        lost = {c: 100 * s / total for c, s in self.seconds.items() if c not in USEFUL}
        shown = ", ".join(f"{cause} {share:.0f} %" for cause, share in lost.items() if share >= 0.5)
        useful = f"{100 * (self.goodput or 0.0):.0f} % useful"
        return f"{useful}; {shown}" if shown else useful

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "hours": self.hours,
            "dollars": self.dollars,
            "unpriced_hours": self.unpriced_hours,
            "goodput": self.goodput,
            "seconds": self.seconds,
            "dollars_by_cause": dict(self.dollars_by_cause),
            "machines": [dataclasses.asdict(m) | {"hours": m.hours} for m in self.machines],
        }


def costs_of(run: RunState, head: Head, now: float, history: RunLog | None = None) -> Costs:
    """What `run` has cost until `now`, read from its store. Raises StoreError."""
    events, metrics = history or read_log(run)
    # The last claim of a process is the one whose owner spoke last.
    beats = {p.epochs[-1]: run.heartbeat(p.epochs[-1]) for p in processes_of(events, head)}
    return costs(
        events,
        metrics,
        head,
        now,
        heartbeats={epoch: float(beat["at"]) for epoch, beat in beats.items() if beat},
        silence=run.silence,
    )


class RunLog(NamedTuple):
    """A run's events, and all rows of each training stage."""

    events: list[dict[str, Any]]
    metrics: dict[str, list[dict[str, Any]]]


def read_log(run: RunState) -> RunLog:
    """Everything `run` has reported. Raises StoreError."""
    return RunLog(
        read_events(run.store, run.name),
        {stage: read_all_metrics(run.store, run.name, stage) for stage in TRAINED},
    )


def costs(
    events: Sequence[Row],
    metrics: Mapping[str, Sequence[Row]],
    head: Head,
    now: float,
    *,
    heartbeats: Mapping[int, float] | None = None,
    silence: float = SILENCE_SECONDS,
) -> Costs:
    """What a run has cost until `now`; all times are Unix seconds.

    Args:
        metrics: stage → all rows, those of steps that were done again too.
        heartbeats: epoch → when its owner last said that it lives.
        silence: an owner that gave no sign for so many seconds is dead.
    """
    attempts = attempts_of(events, metrics, head)
    processes = processes_of(events, head)
    claims = [process.claimed_at for process in processes[1:]]
    machines: dict[str, list[tuple[Process, list[Span]]]] = {}
    worked_until: dict[str, float] = {}
    for process, until in zip(processes, [*claims, now]):
        end = process.last_sign(until, events, attempts, heartbeats or {}, head)
        alive = process is processes[-1] and head.owner is not None and now - end <= silence
        end = now if alive else end
        since = worked_until.get(process.machine)
        spans = process.spans(since, end, events, attempts, head, alive=alive)
        machines.setdefault(process.machine, []).append((process, list(spans)))
        worked_until[process.machine] = end
    by_cause = dict.fromkeys(CAUSES, 0.0)
    for work in machines.values():
        for process, spent in work:
            for cause, seconds in _by_cause(spent).items():
                by_cause[cause] += (process.price or 0.0) * seconds / 3600
    starts = {attempt.epoch: attempt.groups[0].at for attempt in reversed(attempts)}
    parts = [_machine_cost(work, starts, events) for work in machines.values()]
    for lost in map(_cost_of_lost, lost_machines(events)):
        by_cause[BOOT] += lost.dollars or 0.0
        parts.append(lost)
    return Costs(tuple(sorted(parts, key=lambda part: part.begin)), by_cause)


def _machine_cost(
    work: Sequence[tuple[Process, Sequence[Span]]],
    first_steps: Mapping[int, float],
    events: Sequence[Row],
) -> MachineCost:
    (first, _), (last, _) = work[0], work[-1]
    spans = [span for _, spent in work for span in spent]
    epochs = tuple(epoch for process, _ in work for epoch in process.epochs)
    trained = [first_steps[epoch] for epoch in epochs if epoch in first_steps]
    prices = [(p.price, sum(_by_cause(spent).values()) / 3600) for p, spent in work]
    priced = [price * hours for price, hours in prices if price is not None]
    about = last.about
    return MachineCost(
        id=last.machine,
        rented=last.rented,
        host=about.get("host") or last.machine,
        cloud=about.get("cloud"),
        region=about.get("region"),
        gpu=about.get("gpu"),
        count=about.get("count") or 0,
        spot=about.get("spot"),
        price=last.price,
        begin=first.paid_from,
        end=max((span.end for span in spans), default=first.paid_from),
        seconds=_by_cause(spans),
        dollars=sum(priced) if priced else None,
        unpriced_hours=sum(hours for price, hours in prices if price is None),
        to_first_step=trained[0] - first.paid_from if trained else None,
        phases={**(first.about.get("phases") or {}), **_until_first_step(events, first.epochs)},
        epochs=epochs,
    )


def _until_first_step(events: Sequence[Row], epochs: Sequence[int]) -> dict[str, float]:
    """Seconds of what `pion run` did first under these epochs, by name."""
    found: dict[str, float] = {}
    for event in events:
        if event["event"] == "phase" and event["epoch"] in epochs:
            if event.get("total"):
                break  # the first step, and what follows it
            if "parts" not in event:  # a sum of others
                found.setdefault(event["name"], event["seconds"])
    return found


def _cost_of_lost(machine: LostMachine) -> MachineCost:
    """Of one that never owned the run: all boot."""
    hours, price = machine.seconds / 3600, machine.price
    return MachineCost(
        id=machine.id,
        rented=True,
        host="",
        cloud=machine.cloud,
        region=None,
        gpu=machine.gpu,
        count=machine.count,
        spot=None,
        price=price,
        begin=machine.begin,
        end=machine.begin + machine.seconds,
        seconds={**dict.fromkeys(CAUSES, 0.0), BOOT: machine.seconds},
        dollars=None if price is None else price * hours,
        unpriced_hours=hours if price is None else 0.0,
        to_first_step=None,
        phases={},
        epochs=(),
    )


def _by_cause(spans: Sequence[Span]) -> dict[str, float]:
    seconds = dict.fromkeys(CAUSES, 0.0)
    for span in spans:
        seconds[span.cause] += span.end - span.begin
    return seconds
