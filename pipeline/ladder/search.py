"""Search over settings by successive halving. Every run is a run of the job's store.

What is done next follows from what the runs have measured (halving.py), and nothing else. So a
search that is killed anywhere, and begun again, ends with the same choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import Stopped
from pipeline.console.formats import counted
from pipeline.job import Job
from pipeline.job.job import without_questions
from pipeline.ladder.cap import Cap, total, why_stopped
from pipeline.ladder.halving import Choice, Curves, Wanted, decide, steps_taken
from pipeline.ladder.record import SearchRecord, search_file
from pipeline.ladder.runs import Run, Runs, as_overrides
from pipeline.ladder.vary import Setting, refuse_same, refuse_unpaired, rounds_of, run_name
from pipeline.ladder.work import Work
from pipeline.state.head import Head, Spent

FEW_ROWS = 32


@dataclass(frozen=True)
class Trial(Run):
    """A run of the search: a setting with a seed."""

    setting: Setting
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a search has found.

    Attributes:
        curves: the held-out losses of all its runs.
        failed: why a run has no result, by its name.
    """

    choice: Choice
    curves: Curves
    failed: Mapping[str, str]
    spent: Spent


class Search:
    """One start of a search over `settings`, with so many seeds.

    Raises BadInput for settings that can't be compared.

    Attributes:
        steps: those that all rounds take together.
        grid_steps: those of all settings, seeds and steps.
    """

    def __init__(self, runs: Runs, settings: Sequence[Setting], seeds: int, cap: Cap) -> None:
        job, self._runs = runs.job, runs
        self._stage = job.train_stages[0]
        self.rounds = rounds_of(job, self._stage, settings, seeds)
        numbers = range(job.seed, job.seed + seeds)
        self.trials = self._make_trials(settings, numbers)
        self.steps = steps_taken(self.rounds)
        self.grid_steps = job.section(self._stage).total_steps * len(self.trials)
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
            curves = self._curves()
            decided = decide(curves, self.rounds)
            if isinstance(decided, Choice):
                break
            self._train(decided)
        if self._work.record.choice != decided.setting:
            self._work.change(lambda old: {"choice": decided.setting})
        return Outcome(decided, curves, self._work.record.failed, total(_spent(self._heads())))

    def _curves(self) -> Curves:
        """Return what all runs have measured. A run that diverged has infinite losses."""
        found: dict[str, dict[int, dict[int, float]]] = {}
        for trial in self.trials:
            if trial.name in self._work.record.failed:
                curve = {one.step: math.inf for one in self.rounds}
            else:
                curve = self._runs.held_out(trial, self._stage)
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
        """Train a run to a step, or record that it diverged."""
        heads = self._heads()
        code = self._work.advance(
            trial,
            f"{trial.setting.name}, seed {trial.seed}, to step {step:,}: {trial.name}",
            _spent(heads),
            self._expected_hours(trial.name, step, heads),
            pause={f"{self._stage}.pause_at": step},
            until=self._stage,
        )
        if step in self._runs.held_out(trial, self._stage):
            return
        if code == Stopped.exit_code:
            raise why_stopped(self._work.record.cap, total(_spent(self._heads())), trial.name)
        without = (
            f"ended without a held-out loss at step {step:,} (see above), and not because it "
            "diverged. What it has done is kept."
        )
        why = self._work.why_diverged(trial, self._stage, without)
        self._work.give_up(trial, why, "Its setting comes last.")

    def _heads(self) -> dict[str, Head]:
        return self._runs.heads(trial.name for trial in self.trials)

    def _expected_hours(self, name: str, step: int, heads: Mapping[str, Head]) -> float | None:
        """Return how many more hours a run takes to a step, as the others took; None if none has
        begun."""
        at = {n: _reached(head, self._stage) for n, head in heads.items()}
        rates = [head.spent.hours / at[n] for n, head in heads.items() if at[n]]
        if not rates:
            return None
        return statistics.median(rates) * max(0, step - at.get(name, 0))

    # ------------------------------------------------------------ its trials

    def _make_trials(self, settings: Sequence[Setting], seeds: Sequence[int]) -> list[Trial]:
        common = as_overrides(_common(self._runs.job, self._stage))
        own = self._runs.of(common)
        varied = {setting: self._runs.of([*setting.overrides, *common]) for setting in settings}
        for setting, run in varied.items():
            refuse_unpaired(setting, own, run)
        refuse_same(varied, self._stage)
        return [
            self._trial(setting, seed, run.overrides)
            for setting, run in varied.items()
            for seed in seeds
        ]

    def _trial(self, setting: Setting, seed: int, changes: Sequence[str]) -> Trial:
        seeded = [*changes, f"seed={seed}"]
        steps = ",".join(str(one.step) for one in self.rounds)
        own = f"{self._runs.of(seeded).digests.stages[self._stage]} {steps}"
        name = run_name(self._runs.job.name, setting, seed, own)
        run = self._runs.of([*seeded, f"name={name}"])
        return Trial(**vars(run), setting=setting, seed=seed)


def _common(job: Job, stage: str) -> dict[str, Any]:
    """Return what all runs of a search change of the job: they do one stage, and measure only where
    they pause and at the end."""
    changes: dict[str, Any] = {
        "publish": None,
        "deadline": None,
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
