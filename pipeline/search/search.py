"""Search over settings by successive halving. Every run is a run of the job's store.

What is done next follows from what the runs have measured (halving.py), and nothing else. So a
search that is killed anywhere, and begun again, ends with the same choice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.errors import BadInput, PionError, Stopped
from pion.later_fields import closest, shown
from pipeline.console.formats import counted, duration, money
from pipeline.cost.budget import price_per_hour
from pipeline.job import Budget
from pipeline.job.digest import digest_job
from pipeline.job.mixes import source_names
from pipeline.machine.gpus import gpu_count
from pipeline.machine.rented import PRICE_VARIABLE
from pipeline.search.halving import Choice, Curves, Wanted, compare, decide, steps_taken
from pipeline.search.runs import Execute, run_to_end
from pipeline.search.trials import (
    Request,
    Trial,
    as_overrides,
    branch_of,
    make_trials,
    rounds_of,
    settings_of,
)
from pipeline.state.head import Head, Spent
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import Amount, open_record
from pipeline.state.rows.metrics import read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store, open_store
from pipeline.state.stores.base import LADDERS, read_all

# Makes a run that continues from a checkpoint of another: pipeline.commands.fork.fork_for.
Fork = Callable[..., object]
# The bounds of a cap.
MOST = {"hours": 10**7, "dollars": 10**9}
_AS_TEXT = {"hours": "{:g} hours", "dollars": "${:g}"}
# A run that its budget has stopped has spent at least this share of it: HEAD counts at commits.
_REACHED = 0.99


@open_record
@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What the store keeps of a search, next to its runs.

    Attributes:
        hours, dollars: the cap over all runs, on all their machines; None: no limit.
        failed: why a run has no result, by its name.
    """

    hours: Amount | None = None
    dollars: Amount | None = None
    failed: Mapping[str, str] = field(default_factory=dict)

    def limits(self, spent: Spent) -> list[tuple[str, float, float]]:
        """Return each limit of the cap: its name, the most, and what is spent of it."""
        both = (("hours", self.hours, spent.hours), ("dollars", self.dollars, spent.dollars))
        return [(name, most, part) for name, most, part in both if most is not None]


def check_cap(cap: SearchRecord, budget: Budget) -> None:
    """Raise BadInput for a cap out of bounds, and for one in dollars if no price is known."""
    for name, most, _ in cap.limits(Spent()):
        if not 0 < most <= MOST[name]:
            raise BadInput(
                f"--{name} {most:g}: give a number above 0, and at most {MOST[name]:,}. Nothing "
                "was started."
            )
    if cap.dollars is not None and price_per_hour(budget) is None:
        raise BadInput(
            f"--dollars {cap.dollars:g}: the price of this machine is not known. Nothing was "
            f"started. Set budget.dollars_per_hour or {PRICE_VARIABLE}, or limit --hours instead."
        )


def refuse_beyond(
    cap: SearchRecord, spent: Spent, run: str = "", hours: float = 0.0, price: float | None = None
) -> None:
    """Raise Stopped if the cap is reached, or if the run would exceed it, which is expected to take
    so many more hours, at `price` dollars per hour."""
    limits = " and ".join(_AS_TEXT[name].format(most) for name, most, _ in cap.limits(spent))
    option = "--dollars" if cap.dollars is not None else "--hours"
    advice = (
        "Every finished run is kept. To continue, run the same command again with a larger "
        f"{option}."
    )
    if any(part >= _REACHED * most for _, most, part in cap.limits(spent)):
        raise Stopped(f"the cap over all runs is reached: {describe(spent)} of {limits}. {advice}")
    then = spent.plus(3600 * hours, price, spent.until)
    if any(part > most for _, most, part in cap.limits(then)):
        raise Stopped(
            f"run {run} would exceed the cap over all runs: {describe(spent)} of {limits} are "
            f"spent, and it would take about {duration(3600 * hours)} more. {advice}"
        )


def budget_left(cap: SearchRecord, budget: Budget, others: Spent) -> dict[str, float]:
    """Return the budget of a run as runtime settings: what the other runs leave of the cap, which
    is not reached, and at most what the job allows."""
    return {
        f"budget.{name}": min(most - part, getattr(budget, name) or most)
        for name, most, part in cap.limits(others)
    }


def total(spent: Iterable[Spent]) -> Spent:
    """Return what runs have cost together."""
    each = list(spent)
    return Spent(sum(run.hours for run in each), sum(run.dollars for run in each))


def describe(spent: Spent) -> str:
    """Return what was spent, in words."""
    dollars = f", {money(spent.dollars)}" if spent.dollars else ""
    return f"{duration(3600 * spent.hours)}{dollars}"


class Search:
    """One start of a search.

    Settings that differ only in later phases share a run of each seed up to these phases, the
    trunk, which `fork` copies. `execute` does `pion run`, and `say` shows a line between those of
    the runs.

    Raises BadInput for settings that can't be compared, and for a wrong source or trunk. Raises
    StoreError.

    Attributes:
        trials, trunks: the runs that it compares, and those that it trains for others to continue.
        steps: those that all rounds take together.
        grid_steps: those of all settings, seeds and steps.
        record: as it was last read or written.
    """

    def __init__(
        self, request: Request, fork: Fork, execute: Execute, say: Callable[[str], None]
    ) -> None:
        self._request, self._fork, self._execute, self._say = request, fork, execute, say
        self._job = job = request.job()
        self._store = open_store(job.store)
        self._stage = job.train_stages[0]
        self._sources = source_names(job.data) if job.mixes else []
        self.settings = settings_of(request.vary)
        branch = branch_of(job, self.settings)
        self._refuse_options(branched=branch > 0)
        self._begin = job.borders[branch - 1][1] if branch else 0
        self.rounds = rounds_of(job, len(self.settings), request.seeds, branched=branch > 0)
        field, first = "seed", job.seed
        if request.trunk is not None:
            field, first = f"{self._stage}.phases.{branch}.order", 0
        seeds = {number: f"{field}={number}" for number in range(first, first + request.seeds)}
        steps = ",".join(str(each.step) for each in self.rounds)
        self.trials, self.trunks = make_trials(
            request, self.settings, seeds, of=steps, fork=branch > 0
        )
        self.grid_steps = job.section(self._stage).total_steps * len(self.trials)
        shared = len(self.trials) - len(self.trunks)
        self.steps = steps_taken(self.rounds) - self._begin * shared
        self._file = record_file(self._store, job.name, self.trials)
        self.record = self._file.read()[0] or SearchRecord()
        cap = {"hours": request.hours, "dollars": request.dollars}
        if any(most is not None for most in cap.values()):
            check_cap(SearchRecord(hours=request.hours, dollars=request.dollars), job.budget)
            self._change(lambda record: cap)
        check_cap(self.record, job.budget)

    def go(self) -> tuple[Curves, dict[str | None, Choice]]:
        """Do what is left. Return the held-out losses of all runs, by which it chose, and how the
        others compare with the chosen setting: by these losses, and on each source of a mix.

        Raises Stopped if the cap is reached, BadInput if the data changed, and what ends a run.
        """
        while isinstance(ranking := decide(curves := self._curves(), self.rounds), Wanted):
            self._train(ranking)
        noise, sources = self.rounds[0], self._sources
        choices = {self._request.on: compare(curves, ranking, noise)}
        chosen, reached = next(iter(ranking.items()))
        for source in sources:
            on_source = self._curves(source)
            measured = any(reached.step in curve for curve in on_source[chosen].values())
            if measured and source != self._request.on:
                choices[source] = compare(on_source, ranking, noise, len(sources))
        return curves, choices

    def _curves(self, source: str | None = None) -> Curves:
        """Return what all runs have measured, on a source or on what decides. One that diverged has
        infinite losses."""
        curves: dict[str, dict[int, dict[int, float]]] = {}
        for trial in self.trials:
            if trial.name in self.record.failed:
                curve = {each.step: math.inf for each in self.rounds}
            else:
                curve = self._held_out(trial, source or self._request.on)
            curves.setdefault(trial.setting, {})[trial.seed] = curve
        return curves

    def _held_out(self, trial: Trial, source: str | None = None) -> dict[int, float]:
        """Return the held-out loss of a run by step, in nats per token, as far as it was measured:
        the mean, or that on a source of the data.

        A loss that is not finite is infinite here: the store keeps it as null.
        """
        head = RunState(self._store, trial.name).read()
        rows = [] if head is None else read_metrics(self._store, trial.name, head, self._stage)
        key = "held_out_loss" if source is None else source
        # A step may have several rows, of which one has been evaluated.
        measured = [(r["step"], r if source is None else r.get("held_out", {})) for r in rows]
        return {
            int(step): math.inf if losses[key] is None else losses[key]
            for step, losses in measured
            if key in losses
        }

    def heads(self) -> dict[str, Head]:
        """Return the states of the runs that have begun, by name. Raises Damaged, StoreError, and
        BadInput if the data have changed between two of them."""
        names = [*self.trunks, *(trial.name for trial in self.trials)]
        states = read_all(lambda name: RunState(self._store, name).read(), names)
        heads = {name: head for name, head in zip(names, states) if head is not None}
        self._refuse_changed_data(heads)
        return heads

    # ------------------------------------------------------------ the runs

    def _train(self, wanted: Wanted) -> None:
        trials = {(trial.setting, trial.seed): trial for trial in self.trials}
        settings = counted(len({setting for setting, _ in wanted.runs}), "setting")
        self._say(f"to step {wanted.step:,}: {len(wanted.runs)} runs of {settings}")
        for key in wanted.runs:
            self._train_one(trials[key], wanted.step)

    def _train_one(self, trial: Trial, step: int) -> None:
        """Train a trial to a step, after its trunk, or record that it diverged."""
        if trial.trunk is not None and trial.name not in self.heads():
            if trial.trunk in self.trunks:
                self._advance(self.trunks[trial.trunk], self._begin)
            if (why := self.record.failed.get(trial.trunk)) is not None:
                self._give_up(trial, f"its trunk {why}")
                return
            source, target = (RunState(self._store, name) for name in (trial.trunk, trial.name))
            self._fork(trial.job, source, target, at=self._begin, stage=self._stage)
        self._advance(trial, step)

    def _advance(self, run: Trial, step: int) -> None:
        """Train a run to a step, unless it is there, or record that it diverged."""
        if run.name in self.record.failed or step in self._held_out(run):
            return
        heads, price = self.heads(), price_per_hour(self._job.budget)
        hours = self._expected_hours(run.name, step, heads)
        refuse_beyond(
            self.record, total(head.spent for head in heads.values()), run.name, hours, price
        )
        about = f", about {duration(3600 * hours)}" if heads else ""
        title = run.setting or "the trunk"
        self._say(f"{title}, {run.seeded}, to step {step:,}: {run.name}{about}")
        others = total(head.spent for name, head in heads.items() if name != run.name)
        limits = budget_left(self.record, run.job.budget, others)
        code = self._start(run, limits | {f"{self._stage}.pause_at": step})
        if step in self._held_out(run):
            return
        if code == Stopped.exit_code:
            refuse_beyond(self.record, total(head.spent for head in self.heads().values()))
            raise Stopped(
                f"run {run.name} was stopped (see above). Everything that is done is kept. To "
                "continue, run the same command again."
            )
        self._give_up(run, self._why_diverged(run, step))

    def _start(self, run: Trial, limits: Mapping[str, Any]) -> int:
        """Do `pion run` of a run with runtime settings, which change no result; return its code."""
        # Without a GPU, Ray would start for half a minute, and the runs are short.
        alone = run.job.hardware.workers is None and not gpu_count()
        settings = as_overrides(({"hardware.workers": 0} if alone else {}) | dict(limits))
        job = [self._request.path, *self._request.overrides, *run.overrides, *settings]
        return run_to_end(self._execute, run.name, [*job, "--until", self._stage])

    def _expected_hours(self, name: str, step: int, heads: Mapping[str, Head]) -> float:
        """Return how many more hours a run takes to a step, as the others took; 0 if none has
        begun."""
        first = {trial.name: self._begin for trial in self.trials}
        done = {n: _reached(head, self._stage) - first.get(n, 0) for n, head in heads.items()}
        rates = [head.spent.hours / done[n] for n, head in heads.items() if done[n] > 0]
        left = max(0, step - first.get(name, 0) - done.get(name, 0))
        return left * statistics.median(rates) if rates else 0.0

    def _why_diverged(self, run: Trial, step: int) -> str:
        """Return why training of a run diverged, in words. Raises PionError if no step of it went
        wrong."""
        head = self.heads().get(run.name, Head())
        digest = digest_job(run.job).stages[self._stage]
        wrong = [rows for rows in head.skipped.get(self._stage, ()) if rows.digest == digest]
        if not wrong:
            raise PionError(
                f"run {run.name} ended without a held-out loss at step {step:,} (see above), and "
                "not because it diverged. What it has done is kept. Fix the cause, and run the "
                "same command again to continue."
            )
        last = wrong[-1]
        times = "once" if len(wrong) == 1 else f"{len(wrong)} times"
        return f"diverged: step {last.step:,} gave {last.why}, after it was rolled back {times}"

    # ------------------------------------------------------------ its record

    def _give_up(self, run: Trial, why: str) -> None:
        """Record that a run will have no result, and say why."""
        self._say(f"{run.name}: {why}. Its setting comes last.")
        self._change(lambda old: {"failed": {**old.failed, run.name: why}})

    def _change(self, change: Callable[[SearchRecord], Mapping[str, Any]]) -> None:
        """Change fields of the record in the store, as it is there now."""
        self.record = self._file.change(
            lambda old: dataclasses.replace(old, **change(old)), self.record
        )
        self._store.flush()

    # ------------------------------------------------------------ what is refused

    def _refuse_options(self, *, branched: bool) -> None:
        on, trunk = self._request.on, self._request.trunk
        if on is not None and on not in self._sources:
            names = f"{closest(on, self._sources)} ({', '.join(self._sources) or 'none'})"
            raise BadInput(
                f"--on: no source of a mix is called {shown(on)}{names}. Nothing was started."
            )
        if trunk is not None and not branched:
            raise BadInput(
                f"--from {trunk}: all values must be of phases that begin later, such as --vary "
                "pretrain.phases.1.mix=…, in a job whose phases read something else. Nothing was "
                "started."
            )
        if trunk is not None and RunState(self._store, trunk).read() is None:
            raise BadInput(f"--from: {self._store.url} has no run {trunk}. Nothing was started.")

    def _refuse_changed_data(self, heads: Mapping[str, Head]) -> None:
        """Raise BadInput if runs of a seed, which are paired, have prepared other content."""
        prepared: dict[int, tuple[str, str]] = {}
        for run in (*self.trunks.values(), *self.trials):
            key = heads.get(run.name, Head()).data.get(self._stage)
            if key is None:
                continue
            fingerprint = key.split("/")[1]
            first, usual = prepared.setdefault(run.seed, (run.name, fingerprint))
            if fingerprint != usual:
                raise BadInput(
                    f"run {run.name} learned from other data than {first}: the job's data changed "
                    "between the two runs, so they can't be compared. Every run is kept. To "
                    "compare all settings on the data of now, give the job another name (name=…). "
                    "If the data are as they were before, remove the run and run the same command "
                    f"again: pion rm {RunState(self._store, run.name).url}"
                )


def record_file(store: Store, job: str, trials: Sequence[Trial]) -> RecordFile[SearchRecord]:
    """Return the record of the search with these runs, whose names hold what they are."""
    names = "\n".join(sorted(trial.name for trial in trials))
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]
    return RecordFile(
        store,
        f"{LADDERS}/{job}/try-{digest}.json",
        strictly(SearchRecord),
        advice="Delete this file. The runs keep what they measured, and the same command decides "
        "again.",
    )


def _reached(head: Head, stage: str) -> int:
    """Return the last committed step of a stage."""
    return max((entry.step for entry in head.checkpoints if entry.stage == stage), default=0)
