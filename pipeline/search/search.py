"""Search over settings by successive halving. Every run is a run of the job's store.

What is done next follows from what the runs have measured (halving.py), and nothing else. So a
search that is killed anywhere, and begun again, ends with the same choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput, Stopped
from pion.later_fields import closest, shown
from pipeline.console.formats import counted
from pipeline.job import Job
from pipeline.job.job import without_questions
from pipeline.job.mixes import source_names
from pipeline.search.cap import Cap, total, why_stopped
from pipeline.search.halving import (
    Choice,
    Curves,
    Wanted,
    decide,
    differences_of,
    steps_taken,
)
from pipeline.search.runs import Run, Runs, as_overrides
from pipeline.search.vary import (
    Comparison,
    Setting,
    branch_of,
    refuse_same,
    refuse_unpaired,
    rounds_of,
    run_name,
)
from pipeline.search.work import SearchRecord, Work, search_file
from pipeline.state.head import Head, Spent
from pipeline.state.run_state import RunState

FEW_ROWS = 32
# Makes a run that continues from a checkpoint of another: pipeline.commands.fork.fork_for.
Fork = Callable[..., object]


@dataclass(frozen=True)
class Trial(Run):
    """A run of the search: a setting with a seed, which the override `seeded` gives.

    `trunk` is the run that it continues from; None: it trains by itself from the start.
    """

    setting: Setting
    seed: int
    seeded: str
    trunk: str | None


@dataclass(frozen=True)
class Outcome:
    """What a search has found.

    Attributes:
        curves: the held-out losses of all its runs, by which it chose.
        by_source: how the others compare with the chosen setting on each source of a mix.
        failed: why a run has no result, by its name.
    """

    choice: Choice
    curves: Curves
    by_source: Mapping[str, Choice]
    failed: Mapping[str, str]
    spent: Spent


class Search:
    """One start of a search over `settings`.

    Settings that differ only in later phases share a run of each seed up to these phases, the
    trunk, which `fork` copies.

    Raises BadInput for settings that can't be compared, and for a wrong source or trunk.

    Attributes:
        trunks: the runs that it trains for others to continue, by name.
        steps: those that all rounds take together.
        grid_steps: those of all settings, seeds and steps.
    """

    def __init__(
        self,
        runs: Runs,
        settings: Sequence[Setting],
        how: Comparison,
        cap: Cap,
        fork: Fork,
    ) -> None:
        job, self._runs, self._fork, self.on = runs.job, runs, fork, how.on
        self._stage = job.train_stages[0]
        self._sources = source_names(job.data) if job.mixes else []
        branch = branch_of(job, settings)
        self._refuse_options(how.trunk, branched=branch > 0)
        self._begin = job.borders[branch - 1][1] if branch else 0
        self.trunks: dict[str, Run] = {}
        self.rounds = rounds_of(job, self._stage, settings, how.seeds, branched=branch > 0)
        field, numbers = "seed", range(job.seed, job.seed + how.seeds)
        if how.trunk is not None:
            field, numbers = f"{self._stage}.phases.{branch}.order", range(how.seeds)
        seeded = {number: f"{field}={number}" for number in numbers}
        self.trials = self._make_trials(settings, seeded, how.trunk)
        self.grid_steps = job.section(self._stage).total_steps * len(self.trials)
        shared = len(self.trials) - len(self.trunks)
        self.steps = steps_taken(self.rounds) - self._begin * shared
        new = SearchRecord(
            stage=self._stage,
            settings=tuple(setting.name for setting in settings),
            seeds=tuple(numbers),
            rounds=tuple(one.step for one in self.rounds),
            hours=cap.hours,
            dollars=cap.dollars,
        )
        file = search_file(runs.store, job.name, [trial.name for trial in self.trials])
        self._work = Work(runs, file, new)

    def go(self) -> Outcome:
        """Do what is left, and return what was found. Raises Stopped if the cap is reached, and
        what ends a run."""
        while True:
            curves = self._curves(self.on)
            decided = decide(curves, self.rounds)
            if isinstance(decided, Choice):
                break
            self._train(decided)
        if self._work.record.choice != decided.setting:
            self._work.change(lambda old: {"choice": decided.setting})
        by_source: dict[str, Choice] = {}
        for source in self._sources:
            on_source = self._curves(source)
            if any(decided.step in curve for curve in on_source[decided.setting].values()):
                by_source[source] = (
                    decided
                    if source == self.on
                    else differences_of(on_source, decided, self.rounds, len(self._sources))
                )
        spent = total(_spent(self._heads()))
        return Outcome(decided, curves, by_source, self._work.record.failed, spent)

    def _curves(self, source: str | None) -> Curves:
        """Return what all runs have measured, on a source or on all. One that diverged has infinite
        losses."""
        found: dict[str, dict[int, dict[int, float]]] = {}
        for trial in self.trials:
            if trial.name in self._work.record.failed:
                curve = {one.step: math.inf for one in self.rounds}
            else:
                curve = self._runs.held_out(trial, self._stage, source)
            found.setdefault(trial.setting.name, {})[trial.seed] = curve
        return found

    # ------------------------------------------------------------ the runs

    def _train(self, wanted: Wanted) -> None:
        trials = {(trial.setting.name, trial.seed): trial for trial in self.trials}
        settings = counted(len({setting for setting, _ in wanted.runs}), "setting")
        self._runs.say(f"to step {wanted.step:,}: {len(wanted.runs)} runs of {settings}")
        for key in wanted.runs:
            self._train_one(trials[key], wanted.step)

    def _train_one(self, trial: Trial, step: int) -> None:
        """Train a trial to a step, after its trunk, or record that it diverged."""
        if trial.trunk is not None and trial.name not in self._heads():
            trunk, failed = self.trunks.get(trial.trunk), self._work.record.failed
            if trunk is not None and trunk.name not in failed:
                self._advance(trunk, f"the trunk, {trial.seeded}", self._begin)
            if (why := self._work.record.failed.get(trial.trunk)) is not None:
                self._work.give_up(trial, f"its trunk {why}", "Its setting comes last.")
                return
            source = RunState(self._runs.store, trial.trunk)
            target = RunState(self._runs.store, trial.name)
            self._fork(trial.job, source, target, at=self._begin, stage=self._stage)
        self._advance(trial, f"{trial.setting.name}, {trial.seeded}", step)

    def _advance(self, run: Run, who: str, step: int) -> None:
        """Train a run to a step, unless it is there, or record that it diverged."""
        if step in self._runs.held_out(run, self._stage):
            return
        heads = self._heads()
        code = self._work.advance(
            run,
            f"{who}, to step {step:,}: {run.name}",
            _spent(heads),
            self._expected_hours(run.name, step, heads),
            pause={f"{self._stage}.pause_at": step},
            until=self._stage,
        )
        if step in self._runs.held_out(run, self._stage):
            return
        if code == Stopped.exit_code:
            raise why_stopped(self._work.record.cap, total(_spent(self._heads())), run.name)
        without = (
            f"ended without a held-out loss at step {step:,} (see above), and not because it "
            "diverged. What it has done is kept."
        )
        why = self._work.why_diverged(run, self._stage, without)
        self._work.give_up(run, why, "Its setting comes last.")

    def _heads(self) -> dict[str, Head]:
        return self._runs.heads([*self.trunks, *(trial.name for trial in self.trials)])

    def _expected_hours(self, name: str, step: int, heads: Mapping[str, Head]) -> float | None:
        """Return how many more hours a run takes to a step, as the others took; None if none has
        begun."""
        first = {trial.name: self._begin for trial in self.trials}
        done = {n: _reached(head, self._stage) - first.get(n, 0) for n, head in heads.items()}
        rates = [head.spent.hours / done[n] for n, head in heads.items() if done[n] > 0]
        if not rates:
            return None
        return statistics.median(rates) * max(0, step - first.get(name, 0) - done.get(name, 0))

    # ------------------------------------------------------------ its trials

    def _refuse_options(self, trunk: str | None, *, branched: bool) -> None:
        if self.on is not None and self.on not in self._sources:
            known = f"{closest(self.on, self._sources)} ({', '.join(self._sources) or 'none'})"
            raise BadInput(
                f"--on: no source of a mix is called {shown(self.on)}{known}. Nothing was started."
            )
        if trunk is not None and not branched:
            raise BadInput(
                f"--from {trunk}: all values must be of phases that begin later, such as --vary "
                "pretrain.phases.1.mix=…, in a job whose phases read something else. Nothing was "
                "started."
            )
        if trunk is not None and trunk not in self._runs.heads([trunk]):
            raise BadInput(
                f"--from: {self._runs.store.url} has no run {trunk}. Nothing was started."
            )

    def _make_trials(
        self, settings: Sequence[Setting], seeds: Mapping[int, str], given: str | None
    ) -> list[Trial]:
        common = as_overrides(_common(self._runs.job, self._stage))
        job = self._runs.of(common)
        varied = {setting: self._runs.of([*setting.overrides, *common]) for setting in settings}
        for setting, run in varied.items():
            refuse_unpaired(setting, job, run)
        refuse_same(varied, self._stage)
        trunks = dict.fromkeys(seeds, given)
        if self._begin and given is None:
            for seed, seeded in seeds.items():
                made = self._named(Setting(("trunk",)), seed, [*common, seeded])
                self.trunks[made.name], trunks[seed] = made, made.name
        steps = ",".join(str(one.step) for one in self.rounds)
        trials = []
        for setting, run in varied.items():
            for seed, seeded in seeds.items():
                trunk = trunks[seed]
                own = f" {steps}" if trunk is None else f" {steps} {trunk}"
                named = self._named(setting, seed, [*run.overrides, seeded], own)
                trials.append(
                    Trial(**vars(named), setting=setting, seed=seed, seeded=seeded, trunk=trunk)
                )
        return trials

    def _named(self, setting: Setting, seed: int, changes: Sequence[str], own: str = "") -> Run:
        digest = self._runs.of(changes).digests.stages[self._stage]
        name = run_name(self._runs.job.name, setting, seed, f"{digest}{own}")
        return self._runs.of([*changes, f"name={name}"])


def _common(job: Job, stage: str) -> dict[str, Any]:
    """Return what all runs of a search change of the job: they do one stage, and measure only where
    they pause and at the end."""
    changes: dict[str, Any] = {
        "publish": None,
        "deadline": None,
        # That of conversations may have decided the model's context.
        "model.seq_len": job.model_config_resolved().seq_len,
        "evaluate.every": job.section(stage).total_steps,
        "evaluate.prompts": [],
        "evaluate.checkpoint": "last",
        **without_questions(job),
        # Of a model to start from, which every run measures before it trains.
        "evaluate.final_rows": min(job.evaluate.final_rows, FEW_ROWS),
    }
    later = job.train_stages[job.train_stages.index(stage) + 1 :]
    return changes | dict.fromkeys(later)


def _spent(heads: Mapping[str, Head]) -> dict[str, Spent]:
    return {name: head.spent for name, head in heads.items()}


def _reached(head: Head, stage: str) -> int:
    """Return the last committed step of a stage."""
    return max((entry.step for entry in head.checkpoints if entry.stage == stage), default=0)
