"""Train the stages of a run: claim it, train, go back after trouble, until done or stopped.

Ray workers and a process without Ray call the same function. Rank 0 owns the run's state, decides
what to restore, and tells the other ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pion.errors import CardFailed, Paused, PionError, PlanFailed, Stopped, Trouble
from pipeline.console.messages import Note, Phase, StageState
from pipeline.state.checkpoints.other_ranks import CopiesForRankZero, OtherRanks
from pipeline.state.checkpoints.retention import HELD_OUT_LOSS
from pipeline.state.claim import Claim
from pipeline.state.stores import StoreError
from pipeline.training.compute_plan import check_compiler
from pipeline.training.context import TrainingContext, phase
from pipeline.training.rank_zero import Rank, RankZero
from pipeline.training.setup import Setup, start_stage

if TYPE_CHECKING:
    from pion.train.smaller_plan import StepDown

StartStage = Callable[[TrainingContext, str], Setup]


def train_stages(context: TrainingContext, start: StartStage = start_stage) -> str:
    """Advance the training stages; return "done", or "stopped" if somebody asked for a stop.

    Raises `Stopped` if a request in the store or the budget asks for the stop, `CardFailed` if a
    GPU or its driver failed, and PionError if a person must decide. Nothing committed is lost then.
    `start` sets a stage up.
    """
    group, started = context.group, time.monotonic()
    try:
        check_compiler(context)
        if not group.from_rank_0(context.wait_for_prepare() if group.rank == 0 else None):
            return "stopped"
        context.report(phase("waited for data", started))
        while True:
            with _attempt(context) as attempt:
                for stage in attempt.todo:
                    attempt.stage = stage
                    if not train_stage(context, attempt.claim, stage, start):
                        if context.is_resized():
                            attempt.leave_to_the_next_group(context)
                        return "stopped"
                    context.free_memory()  # of the stage's trainer, for the next stage
                attempt.continues = True
                return "done"
            context.free_memory()  # of the old trainer: another attempt begins
    except RuntimeError as error:
        from pion.train.card import card_failure

        failure = card_failure(error)
        if failure is None:
            raise
        raise CardFailed(
            f"the GPU or its driver failed: {failure}. Everything committed is safe, and steps "
            "after the last checkpoint will be repeated. `dmesg | grep -i xid` names the driver's "
            "reason. To resume, run the same command again; if the GPU fails again, on another "
            "machine"
        ) from error
    finally:
        context.watchdog.close()


@dataclass
class _Attempt:
    """One attempt at the stages `todo`. `claim` is rank 0's, and None on other ranks.

    `continues` says whether the run goes on: the next claim is the driver's or this process's.
    """

    claim: Claim | None
    todo: list[str]
    stage: str = ""
    continues: bool = False

    def leave_to_the_next_group(self, context: TrainingContext) -> None:
        """Keep the run for workers of another number. This attempt did not fail."""
        self.continues = True
        if self.claim is not None:
            with suppress(StoreError):  # everything is saved: the count is all that is lost
                context.patiently(self.claim.forget_attempts)


@contextmanager
def _attempt(context: TrainingContext) -> Iterator[_Attempt]:
    """Own the run while the block trains. Trouble that another attempt can avoid ends the block."""
    group = context.group
    claim = context.claim() if group.rank == 0 else None
    context.owned = claim
    attempt = _Attempt(claim, [])
    try:
        attempt.todo = group.from_rank_0(context.unfinished(claim.head) if claim else None)
        yield attempt
    except PlanFailed as failed:
        if claim is None or group.world_size > 1:
            raise  # other ranks wait for this one: the driver starts all of them again
        context.use_smaller_plan(failed, claim)
        attempt.continues = True
    except Trouble as trouble:  # on all ranks, at the same step
        refusal = group.from_rank_0(
            context.leave_out(attempt.stage, trouble, claim) if claim else None
        )
        if refusal is not None:
            raise PionError(refusal) from None
        attempt.continues = True
    finally:
        if claim is not None and attempt.continues:
            claim.heartbeat.stop()
        elif claim is not None:
            with suppress(PionError):
                claim.release()


def train_stage(
    context: TrainingContext, claim: Claim | None, stage: str, start: StartStage
) -> bool:
    """Train until the stage is finished (True) or somebody asks for a stop (False).

    `claim` is rank 0's, and None on other ranks. Raises `Stopped` if the stop comes from a request
    in the store or the budget, and `Paused` if the job pauses the stage here.
    """
    started = time.monotonic()
    context.watchdog.restart()
    setup = start(context, stage)
    with ExitStack() as closing:  # closes both, even if the first raises
        closing.callback(setup.close)
        for note in setup.restored.notes:
            context.report(Note(note))
        steps = context.job.section(stage).total_steps
        context.report(StageState(stage, "started", setup.why, steps=steps))
        how = "restored" if setup.trainer.step else "built"
        context.report(phase(f"{stage} {how}", started))
        if claim is not None:
            context.patiently(partial(claim.set_restore, stage, setup.trainer.step))
        rank = _rank(claim, setup)
        closing.callback(rank.close)
        if claim is not None:
            for line in setup.record_machine(claim.epoch):
                context.report(Note(line))
        training = StageTraining(setup, rank)
        if training.run():
            rank.finish()
            return True
        rank.stop()
        if claim is not None and context.stop_reason is not None:
            raise Stopped(context.stop_reason)
        if claim is not None and training.pause_reason is not None:
            raise Paused(training.pause_reason)
        return False


def _rank(claim: Claim | None, setup: Setup) -> Rank:
    """Return what this rank does in addition to computing. Every rank calls this at the same
    time."""
    trainer, context = setup.trainer, setup.context
    if not context.group.distributed:
        return Rank(setup) if claim is None else RankZero(claim, setup)
    if claim is not None:
        return RankZero(claim, setup, OtherRanks(trainer.pieces()))
    return Rank(setup, CopiesForRankZero(trainer.pieces(), trainer.side_copy))


class StageTraining:
    """The steps of one attempt, on one rank, and the evaluations between them."""

    def __init__(self, setup: Setup, rank: Rank) -> None:
        self.context, self.setup, self.rank = setup.context, setup, rank
        job, stage = setup.context.job, setup.stage
        self._steps = job.section(stage).total_steps
        self._borders = {step for of, step in job.borders if of == stage}
        self._pause_at = job.section(stage).pause_at or self._steps
        entry = setup.restored.found.entry
        # It resumes from a checkpoint whose held-out loss is not recorded.
        lacks_loss = entry is not None and entry.metrics.get(HELD_OUT_LOSS) is None
        self._loss_is_due = lacks_loss and job.selects_best(stage)
        self.trainer = setup.trainer
        self.trainer.on_step_down = self._stepped_down

    def run(self) -> bool:
        """Train until all steps are done (True) or somebody asks for a stop (False)."""
        trainer, watchdog = self.trainer, self.context.watchdog
        if trainer.step == self._steps:  # the last attempt ended before this evaluation
            self._evaluate()
            return True
        curve_begins = trainer.step == 0 and self.setup.data.prompts is not None
        if trainer.step == self._pause_at or curve_begins:  # the same, of a stage that pauses here
            self._evaluate()
        else:
            # The last attempt may have ended between the restored step's save and its evaluation.
            # Only a run that publishes its best checkpoint needs this loss.
            due, step = self.context.group.from_rank_0, trainer.step
            if step and self._evaluates_at(step) and due(self._loss_is_due):
                self._evaluate()
        while trainer.step < self._steps:
            if trainer.step >= self._pause_at:
                return False
            self.rank.before_step()
            if not trainer.train_step(self.context.should_stop):
                return False
            watchdog.beat()
            self._after_step(last=trainer.step == self._steps)
        return True

    def _after_step(self, *, last: bool) -> None:
        """Log, evaluate and save, if they are due."""
        job, step = self.context.job, self.trainer.step
        first = not self.context.first_step_seen
        if first:
            self.context.first_step_seen = True
            since_start = time.time() - self.context.request.started
            self.context.report(Phase("first step", since_start, total=True))
        if first or last or step % job.log.every == 0 or self.setup.shows_answers:
            self.rank.log()
        if last or self._evaluates_at(step):
            # Evaluation may run out of memory, so save first.
            self.rank.log()
            self.rank.save_before_evaluating(last=last or step in self._borders)
            self._evaluate()
            self.context.watchdog.beat()
        if not last:
            self.rank.save_if_due()

    @property
    def pause_reason(self) -> str | None:
        """Why the stage stops before its end, where the job asks for that; None if it does not."""
        step, stage = self.trainer.step, self.setup.stage
        if self._pause_at >= self._steps or step < self._pause_at:
            return None
        return (
            f"{stage}.pause_at is {self._pause_at:,}, and step {step:,} of {self._steps:,} is "
            "done. Every finished step is saved. To continue, raise it or leave it out, and run "
            "the same command again."
        )

    def _evaluates_at(self, step: int) -> bool:
        every = self.context.job.evaluate.every or max(1, self._steps // 10)
        return step in {self._pause_at, *self._borders} or step % every == 0

    def _stepped_down(self, change: StepDown) -> None:
        self.context.watchdog.restart()  # the smaller step may be compiled again
        self.rank.stepped_down(change)

    def _evaluate(self) -> None:
        self.rank.evaluated(self.setup.evaluate(self._progress), self._progress)

    def _progress(self) -> None:
        """Tell the watchdog that an evaluation progresses: it may take longer than many steps.
        Raises Fenced."""
        self.context.watchdog.progress()
        self.rank.check()
