"""Climb a ladder: do its runs, the cheapest first, fit a law to them, and predict those held out.

All that decides is in the store: the record of the ladder, and its runs. So a climb that is killed
anywhere, and begun again, does the runs that are left, and ends with the same fit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from pion.errors import BadInput, PionError, Stopped, told
from pipeline.console.formats import moment
from pipeline.ladder.cap import Cap, describe, raise_it, reached, why_stopped
from pipeline.ladder.grid import Grid, Rung, rungs_of
from pipeline.ladder.law import Point, check_points
from pipeline.ladder.look import Ladder, look
from pipeline.ladder.prediction import Fit, fit
from pipeline.ladder.record import PredictionRecord, ladder_file, new_ladder, refuse_other
from pipeline.ladder.runs import Runs
from pipeline.ladder.work import Work


class Climb:
    """One start of a ladder.

    Raises BadInput for a ladder that can't be fitted, or that was begun with other settings.
    """

    def __init__(self, runs: Runs, grid: Grid, cap: Cap) -> None:
        job, self._runs = runs.job, runs
        self._rungs = rungs_of(runs, grid)
        _require_enough(self._rungs)
        new = new_ladder(job, self._rungs, cap)
        before = self._rungs[0].digests.before
        where = f"the ladder {job.name!r} in {runs.store.url}"
        self._work = Work(
            runs,
            ladder_file(runs.store, job.name),
            new,
            refuse=lambda old: refuse_other(old, new, before, where),
        )

    def look(self) -> Ladder:
        """Return the ladder as it is now."""
        return look(self._runs.job.name, self._work.record, self._runs)

    def go(self) -> Ladder:
        """Do what is left, and return the ladder as it then is. A cap that is reached is in its
        `stopped`. Raises any other error that ends a run."""
        self._forget_removed()
        stopped: PionError | None = None
        try:
            self._do(held_out=False)
            found = self._fit()
            if found is not None:
                self._predict(found)
                self._do(held_out=True)
        except Stopped as error:
            stopped = error
            self._fit()
        return dataclasses.replace(self.look(), stopped=stopped)

    # ------------------------------------------------------------ the runs

    def _do(self, *, held_out: bool) -> None:
        """Do the runs that are left. Raises Stopped before a run that would exceed the cap."""
        rungs = [rung for rung in self._rungs if rung.held_out == held_out]
        kind = "held-out run" if held_out else "run"
        for number, rung in enumerate(rungs, 1):
            ladder = self.look()
            if not ladder.step(rung.name).done:
                self._do_one(ladder, rung, f"{kind} {number} of {len(rungs)}: {rung.name}")

    def _do_one(self, before: Ladder, rung: Rung, title: str) -> None:
        """Finish a run, or record that it diverged."""
        name = rung.name
        expected = before.expected_hours(before.step(name))
        code = self._work.advance(rung, title, before.spent_by_run, expected)
        ladder = self.look()
        step = ladder.step(name)
        if code == Stopped.exit_code:
            raise self._why_stopped(ladder, name)
        if code == 0 and step.result is not None:
            self._runs.say(f"{name}: {step.result.bits_per_byte:.4f} bits per byte")
            return
        if code == 0 and step.failed is None:
            raise BadInput(
                f"run {name} is finished with settings other than this ladder's. The job file may "
                "have changed meanwhile. Every run is kept. Run the same command again."
            )
        failed = "failed (see above), and not because it diverged. Every finished run is kept."
        why = step.failed or self._work.why_diverged(rung, "pretrain", failed)
        self._work.give_up(rung, why, "The fit leaves it out.")

    def _why_stopped(self, ladder: Ladder, name: str) -> Stopped:
        """Return why a run stopped before its end: the cap, or a request."""
        cap = ladder.cap
        if reached(cap, ladder.spent) and not any(step.done for step in ladder.steps):
            return Stopped(
                f"the cap of {cap} buys less than the smallest run of the ladder, {name}. "
                f"{describe(ladder.spent)} are spent, and what it has done is saved. "
                f"{raise_it(cap)}"
            )
        return why_stopped(cap, ladder.spent, name)

    def _forget_removed(self) -> None:
        """Forget the failures of runs that a person has removed, to try them again."""
        there = self._runs.heads(self._work.record.failed)
        if gone := self._work.record.failed.keys() - there.keys():
            self._work.change(
                lambda old: {"failed": {n: why for n, why in old.failed.items() if n not in gone}}
            )

    # ------------------------------------------------------------ the fit

    def _fit(self) -> Fit | None:
        """Fit a law to the finished runs, and keep it; return None if they are too few."""
        ladder = self.look()
        points = sorted(ladder.points(), key=lambda point: point.run)
        if ladder.fit is not None and list(ladder.fit.points) == points:
            return ladder.fit
        try:
            check_points(points)
        except BadInput as error:
            self._runs.say(f"no fit: {error}")
            return None
        found = fit(points)
        self._work.change(lambda old: {"fit": found})
        return found

    def _predict(self, found: Fit) -> None:
        """Predict the held-out runs that have not begun, and keep and show the predictions."""
        steps = [step for step in self.look().steps if step.rung.held_out]
        new = {
            step.rung.name: PredictionRecord(
                **vars(found.predict(step.rung.macs_per_token, step.rung.tokens)), at=time.time()
            )
            for step in steps
            if step.prediction is None and step.spent is None
        }
        if new:
            self._work.change(lambda old: {"predictions": {**new, **old.predictions}})
        for step in steps:
            said = self._work.record.predictions.get(step.rung.name)
            if said is not None:
                self._runs.say(
                    f"predicted for {step.rung.name}: {said.bits_per_byte:.4f} bits per byte, 90 % "
                    f"between {said.low:.4f} and {said.high:.4f} ({moment(said.at)})"
                )


def _require_enough(rungs: Sequence[Rung]) -> None:
    """Raise BadInput if the results of all runs would be too few to fit a law."""
    fitted = [rung for rung in rungs if not rung.held_out]
    with told("this ladder could not be fitted: ", " Nothing was started."):
        check_points([Point(rung.name, rung.macs_per_token, rung.tokens, 1.0) for rung in fitted])
