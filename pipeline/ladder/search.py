"""Search over settings by successive halving. Every run is a run of the job's store.

What is done next follows from what the runs have measured (halving.py), and nothing else. So a
search that is killed anywhere, and begun again, ends with the same choice.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import PionError, Stopped
from pipeline.console.formats import duration
from pipeline.cost.budget import price_per_hour
from pipeline.job import Job
from pipeline.job.digest import Digests
from pipeline.job.without_questions import without_questions
from pipeline.ladder.cap import (
    Cap,
    budget_of,
    check_cap,
    refuse_beyond,
    why_stopped,
)
from pipeline.ladder.grid import as_overrides
from pipeline.ladder.halving import Choice, Curves, Round, Wanted, decide, steps_taken
from pipeline.ladder.runs import Runs
from pipeline.ladder.search_record import (
    SearchRecord,
    open_search,
    search_file,
)
from pipeline.ladder.vary import Setting, refuse_same, refuse_unpaired, rounds_of, run_name
from pipeline.state.head import Head, Spent

FEW_ROWS = 32
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A run of the search: a setting with a seed. `overrides` make its job of the search's job."""

    setting: Setting
    seed: int
    job: Job
    digests: Digests
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a search has found.

    Attributes:
        curves: the held-out losses of all its runs.
        failed: why a run has no result, by its name.
        steps: those that all rounds take together.
        grid_steps: those of all settings, seeds and steps.
    """

    choice: Choice
    curves: Curves
    trials: Sequence[Trial]
    rounds: Sequence[Round]
    failed: Mapping[str, str]
    spent: Spent
    steps: int
    grid_steps: int


class Search:
    """One start of a search over the `settings` of a job, with so many seeds.

    Raises BadInput for settings that can't be compared.
    """

    def __init__(
        self, job: Job, settings: Sequence[Setting], seeds: int, cap: Cap, runs: Runs, say: Say
    ) -> None:
        check_cap(cap, job.budget)
        self._job, self._runs, self._say = job, runs, say
        self._stage = job.train_stages[0]
        self.rounds = rounds_of(job, self._stage, settings, seeds)
        self.trials = self._make_trials(settings, seeds)
        new = SearchRecord(
            stage=self._stage,
            settings=tuple(setting.name for setting in settings),
            seeds=tuple(range(job.seed, job.seed + seeds)),
            rounds=tuple(one.step for one in self.rounds),
            hours=cap.hours,
            dollars=cap.dollars,
        )
        names = [trial.job.name for trial in self.trials]
        self._file = search_file(runs.store, job.name, names)
        self._record = open_search(self._file, new)
        runs.store.flush()
        self._cap = Cap(self._record.hours, self._record.dollars)
        check_cap(self._cap, job.budget)

    def go(self) -> Outcome:
        """Do what is left, and return what was found. Raises Stopped if the cap is reached, and
        what ends a run."""
        while isinstance(found := self.look(), Wanted):
            self._train(found)
        if self._record.choice != found.choice.setting:
            self._change(lambda old: dataclasses.replace(old, choice=found.choice.setting))
        return found

    def look(self) -> Wanted | Outcome:
        """Return what has to be trained next, or what was found."""
        curves = self.curves()
        decided = decide(curves, self.rounds)
        if isinstance(decided, Wanted):
            return decided
        return Outcome(
            choice=decided,
            curves=curves,
            trials=self.trials,
            rounds=self.rounds,
            failed=self._record.failed,
            spent=_spent(self._heads()),
            steps=steps_taken(self.rounds),
            grid_steps=self._job.section(self._stage).total_steps * len(self.trials),
        )

    def curves(self) -> Curves:
        """Return what all runs have measured. A run that diverged has infinite losses."""
        found: dict[str, dict[int, dict[int, float]]] = {}
        for trial in self.trials:
            if trial.job.name in self._record.failed:
                curve = {one.step: math.inf for one in self.rounds}
            else:
                curve = self._runs.held_out(trial.job.name, self._stage)
            found.setdefault(trial.setting.name, {})[trial.seed] = curve
        return found

    # ------------------------------------------------------------ the runs

    def _train(self, wanted: Wanted) -> None:
        trials = {(trial.setting.name, trial.seed): trial for trial in self.trials}
        settings = len({setting for setting, _ in wanted.runs})
        self._say(
            f"to step {wanted.step:,}: {len(wanted.runs)} runs of {settings} "
            f"{'setting' if settings == 1 else 'settings'}"
        )
        for key in wanted.runs:
            self._train_one(trials[key], wanted.step)

    def _train_one(self, trial: Trial, step: int) -> None:
        """Train a run to a step, or record that it diverged."""
        name, heads = trial.job.name, self._heads()
        spent = _spent(heads)
        expected = self._expected_hours(name, step, heads)
        price = price_per_hour(self._job.budget)
        refuse_beyond(self._cap, spent, name, expected, price)
        takes = "" if expected is None else f", about {duration(3600 * expected)}"
        self._say(f"{trial.setting.name}, seed {trial.seed}, to step {step:,}: {name}{takes}")
        others = _spent({n: head for n, head in heads.items() if n != name})
        limits: dict[str, Any] = budget_of(trial.job.budget, self._cap, others)
        limits[f"{self._stage}.pause_at"] = step
        code = self._runs.run(trial.job, trial.overrides, limits, until=self._stage)
        if step in self._runs.held_out(name, self._stage):
            return
        if code == Stopped.exit_code:
            raise why_stopped(self._cap, _spent(self._heads()), name)
        digest = trial.digests.stages[self._stage]
        why = self._runs.trouble(name, self._stage, digest)
        if why is None:
            raise PionError(
                f"run {name} ended without a held-out loss at step {step:,} (see above), and not "
                "because it diverged. What it has done is kept. Fix the cause, and run the same "
                "command again to continue."
            )
        self._say(f"{name}: {why}. Its setting comes last.")
        self._change(lambda old: dataclasses.replace(old, failed={**old.failed, name: why}))

    def _heads(self) -> dict[str, Head | None]:
        names = [trial.job.name for trial in self.trials]
        return dict(zip(names, self._runs.heads(names)))

    def _expected_hours(
        self, name: str, step: int, heads: Mapping[str, Head | None]
    ) -> float | None:
        """Return how many more hours a run takes to a step, as the others took; None if none has
        begun."""
        reached_steps = {n: _reached(head, self._stage) for n, head in heads.items()}
        rates = [
            head.spent.hours / reached_steps[n]
            for n, head in heads.items()
            if head is not None and reached_steps[n]
        ]
        if not rates:
            return None
        return statistics.median(rates) * max(0, step - reached_steps[name])

    # ------------------------------------------------------------ the record

    def _make_trials(self, settings: Sequence[Setting], seeds: int) -> list[Trial]:
        common = as_overrides(_common(self._job, self._stage))
        _, own = self._runs.job(common)
        trials, digests = [], []
        for setting in settings:
            changes = [*setting.overrides, *common]
            varied, digest = self._runs.job(changes)
            refuse_unpaired(self._job, own, setting, varied, digest)
            digests.append(digest)
            for seed in range(self._job.seed, self._job.seed + seeds):
                trials.append(self._trial(setting, seed, changes))
        refuse_same(settings, digests, self._stage)
        return trials

    def _trial(self, setting: Setting, seed: int, changes: Sequence[str]) -> Trial:
        seeded = [*changes, f"seed={seed}"]
        _, digests = self._runs.job(seeded)
        steps = ",".join(str(one.step) for one in self.rounds)
        own = f"{digests.stages[self._stage]} {steps}"
        overrides = (*seeded, f"name={run_name(self._job.name, setting, seed, own)}")
        job, digests = self._runs.job(overrides)
        return Trial(setting, seed, job, digests, overrides)

    def _change(self, change: Callable[[SearchRecord], SearchRecord]) -> None:
        self._record = self._file.change(change, self._record)
        self._runs.store.flush()


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


def _spent(heads: Mapping[str, Head | None]) -> Spent:
    each = [head.spent for head in heads.values() if head is not None]
    return Spent(sum(spent.hours for spent in each), sum(spent.dollars for spent in each))


def _reached(head: Head | None, stage: str) -> int:
    """Return the last committed step of a stage."""
    entries = () if head is None else head.checkpoints
    return max((entry.step for entry in entries if entry.stage == stage), default=0)
