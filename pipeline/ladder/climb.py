"""Climb a ladder: do its runs, the cheapest first, fit a law to them, and predict those held out.

All that decides is in the store: the record of the ladder, and its runs. So a climb that is killed
anywhere, and begun again, does the runs that are left, and ends with the same fit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from pion.errors import BadInput, PionError, Stopped
from pipeline.console.formats import duration, moment
from pipeline.cost.budget import price_per_hour
from pipeline.job import Job
from pipeline.ladder.cap import (
    Cap,
    budget_of,
    check_cap,
    describe,
    raise_it,
    reached,
    refuse_beyond,
    why_stopped,
)
from pipeline.ladder.fit import Fit, fit
from pipeline.ladder.grid import Grid, Rung, rungs_of
from pipeline.ladder.look import Ladder, Step, look
from pipeline.ladder.points import Point, check_points
from pipeline.ladder.record import (
    LadderRecord,
    PredictionRecord,
    ladder_file,
    new_record,
    open_ladder,
)
from pipeline.ladder.runs import Runs

Say = Callable[[str], None]


class Climb:
    """One start of a ladder of a job. `say` shows a line to the person.

    Raises BadInput for a ladder that can't be fitted, or that was begun with other settings.
    """

    def __init__(self, job: Job, grid: Grid, cap: Cap, runs: Runs, say: Say) -> None:
        check_cap(cap, job.budget)
        self._job, self._runs, self._say = job, runs, say
        self._rungs = rungs_of(job, grid)
        _require_enough(self._rungs)
        self._jobs = {rung.name: runs.job(rung.overrides) for rung in self._rungs}
        wanted = new_record(job, self._rungs, self._jobs)
        wanted = dataclasses.replace(wanted, hours=cap.hours, dollars=cap.dollars)
        before = self._jobs[self._rungs[0].name][1].before
        self._file = ladder_file(runs.store, job.name)
        self._record = open_ladder(self._file, runs.store, job.name, wanted, before)
        self._cap = Cap(self._record.hours, self._record.dollars)
        check_cap(self._cap, job.budget)

    def look(self) -> Ladder:
        """Return the ladder as it is now."""
        return look(self._job, self._rungs, self._jobs, self._record, self._runs)

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
        for number, rung in enumerate(rungs, 1):
            ladder = self.look()
            step = next(step for step in ladder.steps if step.rung == rung)
            if step.done:
                continue
            expected = ladder.expected_hours(step)
            price = price_per_hour(self._job.budget)
            refuse_beyond(self._cap, ladder.spent, rung.name, expected, price)
            takes = "" if expected is None else f", about {duration(3600 * expected)}"
            kind = "held-out run" if held_out else "run"
            self._say(f"{kind} {number} of {len(rungs)}: {rung.name}{takes}")
            self._do_one(rung, ladder)

    def _do_one(self, rung: Rung, before: Ladder) -> None:
        """Finish a run, or record that it diverged."""
        job, _ = self._jobs[rung.name]
        limits = budget_of(job.budget, self._cap, before.spent_without(rung.name))
        code = self._runs.run(job, rung.overrides, limits)
        step = next(step for step in self.look().steps if step.rung == rung)
        if code == Stopped.exit_code:
            raise self._why_stopped(rung)
        if code == 0 and step.result is not None and _is_loss(step.result.bits_per_byte):
            self._say(f"{rung.name}: {step.result.bits_per_byte:.4f} bits per byte")
            return
        why = self._why_failed(step, code)
        self._say(f"{rung.name}: {why}. The fit leaves it out.")
        self._change(lambda old: dataclasses.replace(old, failed={**old.failed, rung.name: why}))

    def _why_failed(self, step: Step, code: int) -> str:
        """Return why a run has no result. Raises PionError if it did not diverge."""
        name = step.rung.name
        if code == 0 and step.result is not None:
            return "its held-out loss is not a number"
        if code == 0:
            raise BadInput(
                f"run {name} is finished with settings other than this ladder's. The job file may "
                "have changed meanwhile. Every run is kept. Run the same command again."
            )
        digest = self._jobs[name][1].stages["pretrain"]
        trouble = self._runs.trouble(name, "pretrain", digest)
        if trouble is None:
            raise PionError(
                f"run {name} failed (see above), and not because it diverged. Every finished run "
                "is kept. Fix the cause, and run the same command again to continue."
            )
        return trouble

    def _why_stopped(self, rung: Rung) -> Stopped:
        """Return why a run stopped before its end: the cap, or a request."""
        ladder = self.look()
        if reached(self._cap, ladder.spent) and not any(step.done for step in ladder.steps):
            return Stopped(
                f"the cap of {self._cap} buys less than the smallest run of the ladder, "
                f"{rung.name}. {describe(ladder.spent)} are spent, and what it has done is saved. "
                f"{raise_it(self._cap)}"
            )
        return why_stopped(self._cap, ladder.spent, rung.name)

    def _forget_removed(self) -> None:
        """Forget the failures of runs that a person has removed, to try them again."""
        names = list(self._record.failed)
        gone = [name for name, head in zip(names, self._runs.heads(names)) if head is None]
        if gone:
            self._change(
                lambda old: dataclasses.replace(
                    old, failed={n: why for n, why in old.failed.items() if n not in gone}
                )
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
            self._say(f"no fit: {error}")
            return None
        found = fit(points)
        self._change(lambda old: dataclasses.replace(old, fit=found.record()))
        return found

    def _predict(self, found: Fit) -> None:
        """Predict the held-out runs that have not begun, and keep and show the predictions."""
        steps = [step for step in self.look().steps if step.rung.held_out]
        new = {
            step.rung.name: _predicted(found, step.rung)
            for step in steps
            if step.prediction is None and step.spent is None
        }
        if new:
            self._change(
                lambda old: dataclasses.replace(old, predictions={**new, **old.predictions})
            )
        for step in steps:
            said = self._record.predictions.get(step.rung.name)
            if said is not None:
                self._say(
                    f"predicted for {step.rung.name}: {said.bits_per_byte:.4f} bits per byte, 90 % "
                    f"between {said.low:.4f} and {said.high:.4f} ({moment(said.at)})"
                )

    def _change(self, change: Callable[[LadderRecord], LadderRecord]) -> None:
        """Change the record in the store, as it is there now."""
        self._record = self._file.change(change, self._record)
        self._runs.store.flush()


def _predicted(found: Fit, rung: Rung) -> PredictionRecord:
    said = found.predict(rung.macs_per_token, rung.tokens)
    return PredictionRecord(said.bits_per_byte, said.low, said.high, time.time())


def _require_enough(rungs: Sequence[Rung]) -> None:
    """Raise BadInput if the results of all runs would be too few to fit a law."""
    fitted = [rung for rung in rungs if not rung.held_out]
    try:
        check_points([Point(rung.name, rung.macs_per_token, rung.tokens, 1.0) for rung in fitted])
    except BadInput as error:
        raise BadInput(f"this ladder could not be fitted: {error} Nothing was started.") from None


def _is_loss(value: float) -> bool:
    return math.isfinite(value) and value > 0
