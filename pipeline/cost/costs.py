"""What a run has cost: the time paid for on each machine, by what it was spent on.

Everything is read from the run's store. A process that owned the run is paid for from the moment
its machine was rented (at home: from its own start) until its last sign of life, and at most until
the next owner's claim. Signs of life are rows of metrics, events, heartbeats, checkpoints, finished
stages, and the last change of HEAD. If the current owner gave a recent sign, it is paid for until
now. A machine that never claimed the run counts as boot, from the first to the last time that
`pion launch` or `pion watch` saw it. The store does not know what a machine cost while nobody
watched it, or after its last sign.

Each second counts once, as one of CAUSES:

    steps      optimizer steps that were kept
    stages     other work of the job: prepare, evaluations, publishing
    reference  what the model gives for preferences before it learns from them, computed once
    boot       from the start of the rental until the first step begins: the machine, installing,
               imports, workers; and the extra time of the first step (compiling)
    restore    reading a checkpoint back, and everything else between two attempts of one process
    recompute  steps repeated because a later attempt resumed from an earlier checkpoint
    lost       after the last step that a process has reported, until it died: a hang, or work in
               flight
    stall      training waited between two steps, or for the last save
    idle       a rented machine did nothing: between two processes, or waiting for the run

Steps, stages and reference are useful; the other six are badput.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.console.formats import duration, money
from pipeline.cost.timeline import (
    BOOT,
    CAUSES,
    REFERENCE,
    STAGES,
    STEPS,
    Process,
    Row,
    Span,
    attempts_of,
    processes_of,
)
from pipeline.job.stages import TRAINING
from pipeline.machine.rented import RENTED
from pipeline.state.head import Head
from pipeline.state.rows.metrics import read_events
from pipeline.state.rows.row_types import LostMachine, Unreadable
from pipeline.state.rows.thin import ThinReader
from pipeline.state.run_state import SILENCE_SECONDS, RunState
from pipeline.state.stores import Conflict

# The kind of the event.
LOST = "lost"
# What a first step waited for beyond the phases that are known.
ELSE = "everything else"
# The epoch of these events: they have no owner, so it is before the first epoch.
_EPOCH = 0


def keep_lost(run: RunState, machine: LostMachine) -> None:
    """Write `machine` into the events of `run`, unless it is there already. Raises StoreError."""
    event = {"event": LOST, "epoch": _EPOCH, "at": machine["end"], **machine}
    key = run.key(f"events/{_EPOCH}/{LOST}-{machine['id']}.jsonl")
    with contextlib.suppress(Conflict):
        run.store.compare_and_swap(key, (json.dumps(event) + "\n").encode(), None)


def owners_of(events: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the ids of all rented machines that have owned the run."""
    return {str(event["id"]) for event in events if event["event"] == RENTED}


def lost_machines(events: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the events of the machines that never owned the run."""
    owners = owners_of(events)
    found = {str(e["id"]): e for e in events if e["event"] == LOST and str(e["id"]) not in owners}
    return list(found.values())


def _work_of_lost(event: Row) -> list[tuple[Process, list[Span]]]:
    """Return what a machine did that never owned the run: all of it was boot."""
    begin, about = event["begin"], {**event, "host": ""}
    process = Process(range(0), begin, rented=True, about=about, released=True)
    return [(process, [Span(begin, max(begin, event["end"]), BOOT)])]


USEFUL = (STEPS, STAGES, REFERENCE)


@dataclass(frozen=True)
class MachineCost:
    """One machine's part of the cost.

    Attributes:
        id: of the rental; for a machine at home, its host name.
        count: how many GPUs it has.
        price: dollars per hour; None if not known.
        begin, end: when paying for it began and ended (Unix seconds).
        seconds: by cause.
        dollars: None if its price is not known.
        unpriced_hours: the hours of its processes whose price is not known.
        to_first_step: seconds from `begin` to its first step; None if it never trained.
        phases: the seconds of each part of that time, by name; some overlap.
        epochs: under which it owned the run; empty if it never did.
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
        """Return ` (machine up 31 s, install 48 s, …)`: what the first step waited for.

        Empty if not known.
        """
        parts = ", ".join(f"{name} {duration(s)}" for name, s in self.phases.items() if s >= 0.5)
        return f" ({parts})" if parts else ""

    def describe(self) -> str:
        """Return `2 × A40 on RunPod/CA, spot`; for a machine at home, its host name."""
        if not self.rented:
            return self.host
        gpu = self.gpu or ("unknown GPU" if self.count else "CPU")
        what = f"{self.count} × {gpu}" if self.count > 1 else gpu
        place = "/".join(filter(None, (self.cloud, self.region)))
        way = {True: ", spot", False: ", on demand", None: ""}[self.spot]
        never = "" if self.epochs else ", never trained"
        return f"{what} on {place or self.host}{way}{never}"


@dataclass(frozen=True)
class Paid:
    """The time of one process on a machine, in Unix seconds, and its dollars per hour, if known."""

    begin: float
    end: float
    price: float | None


@dataclass(frozen=True)
class Costs:
    """All machines of a run, in the order in which they began, and the known dollars by cause.

    `paid` has the same time by process: its hours and dollars are those of the machines.
    """

    machines: tuple[MachineCost, ...]
    dollars_by_cause: Mapping[str, float]
    paid: tuple[Paid, ...] = ()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause, in the order of CAUSES."""
        return {cause: sum(m.seconds[cause] for m in self.machines) for cause in CAUSES}

    @property
    def hours(self) -> float:
        return sum(machine.hours for machine in self.machines)

    @property
    def dollars(self) -> float | None:
        """The known part of the price; None if no machine's price is known."""
        known = [m.dollars for m in self.machines if m.dollars is not None]
        return sum(known) if known else None

    @property
    def unpriced_hours(self) -> float:
        """Hours whose price is not known. They are missing from `dollars`."""
        return sum(machine.unpriced_hours for machine in self.machines)

    @property
    def goodput(self) -> float | None:
        """The useful share of the time, 0 to 1; None if no time has passed."""
        seconds = self.seconds
        total = sum(seconds.values())
        return sum(seconds[cause] for cause in USEFUL) / total if total else None

    def machine_of(self, epoch: int) -> MachineCost | None:
        """Return the machine that owned the run under `epoch`, or None."""
        return next((m for m in self.machines if epoch in m.epochs), None)

    def describe(self) -> str:
        """Return `3 h 10 min, $1.23 (87 % useful; boot 4 %, recompute 9 %)`."""
        words = [duration(3600 * self.hours)]
        if self.dollars is not None:
            words.append(money(self.dollars))
            if self.unpriced_hours:
                words.append(f"{duration(3600 * self.unpriced_hours)} of it without a price")
        return f"{', '.join(words)} ({self.shares()})" if self.goodput is not None else words[0]

    def shares(self) -> str:
        """Return `87 % useful; boot 4 %, recompute 9 %`, with badput of at least half a percent."""
        total = sum(self.seconds.values()) or 1.0
        lost = {c: 100 * s / total for c, s in self.seconds.items() if c not in USEFUL}
        shown = ", ".join(f"{cause} {share:.0f} %" for cause, share in lost.items() if share >= 0.5)
        useful = f"{100 * (self.goodput or 0.0):.0f} % useful"
        return f"{useful}; {shown}" if shown else useful

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "hours": self.hours,
            "dollars": self.dollars,
            "unpriced_hours": self.unpriced_hours,
            "goodput": self.goodput,
            "seconds": self.seconds,
            "dollars_by_cause": dict(self.dollars_by_cause),
            "machines": [dataclasses.asdict(m) | {"hours": m.hours} for m in self.machines],
        }


def costs_of(run: RunState, head: Head, now: float, log: RunLog | None = None) -> Costs:
    """Return what `run` has cost until `now`; without a `log`, read it from the store.

    Raises StoreError.
    """
    log = log or read_log(run)
    # The owner under a process's last claim sent its last heartbeat.
    beats = run.heartbeats([process.epochs[-1] for process in processes_of(log.events, head)])
    return costs(
        log.events,
        log.metrics,
        head,
        now,
        heartbeats={epoch: beat["at"] for epoch, beat in beats.items()},
        silence=run.silence,
    )


@dataclass(frozen=True)
class RunLog:
    """A run's events, the rows of each training stage, thinned, and what could not be read."""

    events: list[dict[str, Any]]
    metrics: dict[str, list[dict[str, Any]]]
    unreadable: Unreadable = field(default_factory=Unreadable)


def read_log(run: RunState) -> RunLog:
    """Read everything that `run` has reported. Raises StoreError."""
    unreadable = Unreadable()
    return RunLog(
        read_events(run.store, run.name, unreadable),
        {
            stage: ThinReader(run.store, run.key(f"metrics/{stage}/"), unreadable).read()
            for stage in TRAINING
        },
        unreadable,
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
    """Return what a run has cost until `now`. All times are Unix seconds.

    Args:
        metrics: stage → all rows, including those of steps that were repeated.
        heartbeats: epoch → the time of its owner's last heartbeat.
        silence: an owner without a sign of life for this many seconds is dead.
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
    works = [*machines.values(), *map(_work_of_lost, lost_machines(events))]
    by_cause = dict.fromkeys(CAUSES, 0.0)
    paid = []
    for process, spent in itertools.chain.from_iterable(works):
        for cause, seconds in _by_cause(spent).items():
            by_cause[cause] += (process.price or 0.0) * seconds / 3600
        if spent:
            paid.append(Paid(spent[0].begin, spent[-1].end, process.price))
    starts = {a.epoch: a.groups[0].at for a in reversed(attempts) if a.groups}
    for event in events:
        if event["event"] == "phase" and event.get("total"):  # its rows may be lost, or come later
            at = starts.get(event["epoch"], math.inf)
            starts[event["epoch"]] = min(event["at"], at)
    parts = [_machine_cost(work, starts, events) for work in works]
    paid.sort(key=lambda time: time.begin)
    return Costs(tuple(sorted(parts, key=lambda part: part.begin)), by_cause, tuple(paid))


def _machine_cost(
    work: Sequence[tuple[Process, Sequence[Span]]],
    first_steps: Mapping[int, float],
    events: Sequence[Row],
) -> MachineCost:
    (first, _), (last, _) = work[0], work[-1]
    spans = [span for _, spent in work for span in spent]
    epochs = tuple(epoch for process, _ in work for epoch in process.epochs)
    trained = [first_steps[epoch] for epoch in epochs if epoch in first_steps]
    waited = trained[0] - first.paid_from if trained else None
    phases = {**(first.about.get("phases") or {}), **_until_first_step(events, epochs)}
    if waited is not None and waited > sum(phases.values()):  # some overlap: then it may be less
        phases[ELSE] = waited - sum(phases.values())
    prices = [(p.price, sum(_by_cause(spent).values()) / 3600) for p, spent in work]
    priced = [price * hours for price, hours in prices if price is not None]
    about = last.about
    return MachineCost(
        id=last.machine,
        rented=last.rented,
        host=last.machine if about.get("host") is None else about["host"],
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
        to_first_step=waited,
        phases=phases,
        epochs=epochs,
    )


def _until_first_step(events: Sequence[Row], epochs: Sequence[int]) -> dict[str, float]:
    """Return the seconds of what `pion run` said of the time before its first step, by name."""
    found: dict[str, float] = {}
    for event in events:
        if event["event"] == "phase" and event["epoch"] in epochs:
            if event.get("total"):
                break  # the first step
            if "parts" not in event:  # with parts, it is a sum of other phases
                found.setdefault(event["name"], event["seconds"])
    return found


def _by_cause(spans: Sequence[Span]) -> dict[str, float]:
    seconds = dict.fromkeys(CAUSES, 0.0)
    for span in spans:
        seconds[span.cause] += span.end - span.begin
    return seconds
