"""What each process that owned a run spent its time on, second by second, from the run's store.

costs.py explains the causes.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.machine.rented import AT_HOME, RENTED
from pipeline.state.head import UNCOUNTED_SECONDS, Head
from pipeline.state.owner import RELEASED
from pipeline.state.rows.metrics import last_kept_step
from pipeline.state.rows.thin import kept_steps, reports, row_seconds, step_count

STEPS, STAGES, REFERENCE, BOOT, RESTORE, RECOMPUTE, LOST, STALL, IDLE = CAUSES = (
    "steps",
    "stages",
    "reference",
    "boot",
    "restore",
    "recompute",
    "lost",
    "stall",
    "idle",
)
WAITED = "waited to own the run"
# Before a stage learns from preferences.
REFERENCE_PASS = "reference pass"
_PHASES = {
    "prepare": STAGES,
    "evaluate": STAGES,
    "publish": STAGES,
    REFERENCE_PASS: REFERENCE,
    WAITED: IDLE,
}
# Events that only the run's owner reports, so they are signs of life.
_OWNERS_EVENTS = (RENTED, AT_HOME, "phase", "training", "hop", "rewound", "changed", "saved")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    """Unix seconds [begin, end) spent on one cause."""

    begin: float
    end: float
    cause: str


@dataclass(frozen=True)
class _Rows:
    """Rows that were reported together, at the time `at`.

    They have `steps` steps, which took `work` seconds; an evaluation has none. `kept` counts the
    steps that were not repeated later.
    """

    at: float
    steps: int
    kept: int
    work: float


@dataclass(frozen=True)
class Attempt:
    """The training of one stage under one claim, from its rows of metrics.

    Without any row (`groups`), its process died or still prepares its first step.
    """

    stage: str
    epoch: int
    begin: float
    groups: tuple[_Rows, ...]

    @property
    def end(self) -> float:
        return self.groups[-1].at if self.groups else self.begin

    @property
    def rewound(self) -> bool:
        """Whether a later attempt resumed before the last step of this attempt."""
        return any(group.kept < group.steps for group in self.groups)

    def spans(self) -> Iterator[Span]:
        """Yield the spans from the start of the first step to the last row."""
        later = [g.work / g.steps for g in self.groups[1:] if g.steps and math.isfinite(g.work)]
        usual = statistics.median(later) if later else math.inf
        reached = self.begin
        for number, group in enumerate(self.groups):
            if group.steps == 0:
                yield Span(reached, group.at, STAGES)
            else:
                work = min(group.work, usual * group.steps) if number == 0 else group.work
                begin = max(reached, group.at - work)
                if number > 0:
                    yield Span(reached, begin, STALL)
                rewound = begin + (group.at - begin) * group.kept / group.steps
                yield Span(begin, rewound, STEPS)
                yield Span(rewound, group.at, RECOMPUTE)
            reached = group.at


def attempts_of(
    events: Iterable[Row], metrics: Mapping[str, Sequence[Row]], head: Head
) -> list[Attempt]:
    """Return every attempt that began or wrote rows, in order of epoch.

    `metrics`: stage → all its rows, which may be thinned. A row that stands for several steps is a
    report of these steps. Their work is infinite (all available time) if a row does not say it.
    """
    began = {(e["stage"], e["epoch"]): e for e in events if e["event"] == "training"}
    attempts = []
    for stage, rows in metrics.items():
        last_kept = last_kept_step(head, stage)
        in_order = sorted(rows, key=lambda row: (row["epoch"], row["at"]))
        for epoch, mine in itertools.groupby(in_order, key=lambda row: int(row["epoch"])):
            event = began.get((stage, epoch), {})
            groups = _groups(mine, last_kept(epoch), event.get("seq_len"))
            if groups:
                began.pop((stage, epoch), None)
                begin = min(event.get("at", math.inf), groups[0].at)
                attempts.append(Attempt(stage, epoch, begin, tuple(groups)))
    attempts += [Attempt(*named, event["at"], ()) for named, event in began.items()]
    return sorted(attempts, key=lambda attempt: (attempt.epoch, attempt.begin))


def _groups(rows: Iterable[Row], last_kept: int, seq_len: int | None) -> list[_Rows]:
    groups: list[_Rows] = []
    for report in reports(rows):
        steps = [row for row in report if step_count(row)]
        if steps or "loss" not in report[0]:  # else a later row stands for them
            kept = sum(kept_steps(row, last_kept) for row in steps)
            work = sum(row_seconds(row) * (seq_len or math.inf) for row in steps)
            groups.append(_Rows(report[-1]["at"], sum(map(step_count, steps)), kept, work))
    return groups


@dataclass(frozen=True)
class Process:
    """One process that owned the run under `epochs`.

    `about` is the event in which it described itself. `released`: whether it released the run
    itself.
    """

    epochs: range
    claimed_at: float
    rented: bool
    about: Row
    released: bool

    @property
    def machine(self) -> str:
        """The id of the rental; for a machine at home, its host name."""
        return str(self.about["id"] if self.rented else self.about["host"])

    @property
    def price(self) -> float | None:
        """Dollars per hour."""
        return self.about.get("price")

    @property
    def paid_from(self) -> float:
        """When paying for it began. An implausible time (a clock jumped) counts as the claim's."""
        since = self.about.get("rented_at" if self.rented else "started_at") or self.claimed_at
        return since if 0 <= self.claimed_at - since <= UNCOUNTED_SECONDS else self.claimed_at

    def last_sign(
        self,
        until: float,
        events: Iterable[Row],
        attempts: Iterable[Attempt],
        heartbeats: Mapping[int, float],
        head: Head,
    ) -> float:
        """Return the time of its last sign of life, at most `until`."""
        mine = self.epochs
        signs = [self.claimed_at, *(at for epoch, at in heartbeats.items() if epoch in mine)]
        signs += [e["at"] for e in events if e["epoch"] in mine and e["event"] in _OWNERS_EVENTS]
        signs += [attempt.end for attempt in attempts if attempt.epoch in mine]
        signs += [claim.at for claim in head.claims if claim.epoch in mine]
        signs += [entry.at for entry in head.checkpoints if entry.epoch in mine]
        signs += [r.at for r in head.stages.values() if self.claimed_at <= r.at <= until]
        if head.epoch in mine:
            signs.append(head.spent.until)  # HEAD's last change
        return min(max(signs), until)

    def spans(
        self,
        since: float | None,
        end: float,
        events: Iterable[Row],
        attempts: Sequence[Attempt],
        head: Head,
        *,
        alive: bool,
    ) -> Iterator[Span]:
        """Yield its time until `end` without gaps.

        `since` is when an earlier process on the same machine ended; None if there was none.
        """
        reached = self.paid_from
        if since is not None:
            phases = self.about.get("phases") or {}
            # When the machine was up and began to work for this process.
            reached = max(since, self.paid_from + phases.get("machine up", 0.0))
            if self.rented:
                yield Span(since, reached, IDLE)
        mine = [attempt for attempt in attempts if attempt.epoch in self.epochs]
        known = [*self._phases(events), *(span for a in mine for span in a.spans())]
        known += [self._after(a, attempts, end, head, alive) for a in mine]
        if alive and not mine and "prepare" not in head.stages:
            known.append(Span(self.claimed_at, end, STAGES))
        work = [span.begin for span in known if span.cause not in (IDLE, RESTORE)]
        begins = [attempt.begin for attempt in mine] or work
        first, last = min(begins, default=math.inf), max((a.end for a in mine), default=-math.inf)
        if not mine and (not attempts or attempts[-1].begin >= self.claimed_at):
            first = math.inf  # it was to train, and did not come that far
        for span in [*sorted(known, key=lambda span: span.begin), Span(end, end, IDLE)]:
            begin = min(max(span.begin, reached), end)
            if begin > reached:
                gap = BOOT if reached <= first else RESTORE if reached < last else STAGES
                yield Span(reached, begin, gap)
                reached = begin
            if min(span.end, end) > reached:
                yield Span(reached, min(span.end, end), span.cause)
                reached = min(span.end, end)

    def _phases(self, events: Iterable[Row]) -> Iterator[Span]:
        for event in events:
            if event["event"] == "phase" and event["epoch"] in self.epochs:
                name = event["name"]
                cause = RESTORE if name.endswith(" restored") else _PHASES.get(name)
                if cause is not None:
                    yield Span(event["at"] - event["seconds"], event["at"], cause)

    def _after(
        self, attempt: Attempt, attempts: Sequence[Attempt], end: float, head: Head, alive: bool
    ) -> Span:
        """Return the time after the last row of `attempt`, with its cause."""
        last_of_stage = [a for a in attempts if a.stage == attempt.stage][-1] == attempt
        last_of_mine = [a for a in attempts if a.epoch in self.epochs][-1] == attempt
        record = head.stages.get(attempt.stage)
        if record is not None and last_of_stage and attempt.end <= record.at <= end:
            return Span(attempt.end, record.at, STALL if attempt.groups else STAGES)
        if last_of_mine and not alive and (attempt.rewound or not self.released):
            return Span(attempt.end, end, LOST)
        if last_of_mine and not attempt.groups:
            return Span(attempt.end, end, BOOT)
        if last_of_mine:
            return Span(attempt.end, end, STEPS if alive else STALL)
        # Until its process claims the run for other workers, or to go back.
        again = [c.at for c in head.claims if attempt.epoch < c.epoch and c.epoch in self.epochs]
        return Span(attempt.end, max(attempt.end, min(again, default=attempt.end)), LOST)


def processes_of(events: Iterable[Row], head: Head) -> list[Process]:
    """Return every process that is known to have owned the run, in order of claims.

    Each process writes an event about itself. For processes that died before that, HEAD has the
    last claims.
    """
    found: dict[int, tuple[float, bool, Row]] = {}
    sessions = set()
    for event in events:
        if event["event"] in (RENTED, AT_HOME):
            found[event["epoch"]] = (event["at"], event["event"] == RENTED, event)
            sessions.add(event.get("session"))
    for claim in reversed(head.claims):
        owner = claim.owner
        if claim.epoch in found:
            at, rented, about = found[claim.epoch]
            found[claim.epoch] = (min(at, claim.at), rented, about)
        elif owner.session not in sessions:  # the later claims of a session are its workers'
            about = {"host": owner.host, "started_at": owner.started_at}
            found[claim.epoch] = (claim.at, False, about)
        sessions.add(owner.session)
    ordered = [(epoch, *found[epoch]) for epoch in sorted(found)]
    stops = [epoch for epoch, *_ in ordered[1:]]
    stops += [max(head.epoch, ordered[-1][0]) + 1] if ordered else []
    released = [about.get("reason") in (None, RELEASED) for *_, about in ordered[1:]]
    return [
        Process(range(epoch, stop), at, rented, about, free)
        for (epoch, at, rented, about), stop, free in zip(
            ordered, stops, [*released, head.owner is None]
        )
    ]
