"""What ranks do in addition to computing: rank 0 saves, logs and reports for all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from pion.errors import Trouble
from pipeline.console.messages import Evaluation, Note, Sample, StageState, Step
from pipeline.machine.kill_points import mark
from pipeline.models.bring import run_reference
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.other_ranks import CopiesForRankZero, OtherRanks
from pipeline.state.checkpoints.retention import HELD_OUT_LOSS, Keep
from pipeline.state.claim import Claim
from pipeline.training.advice import Advice
from pipeline.training.cadence import SaveCadence, seconds_between_interruptions
from pipeline.training.learning_advice import advice_on
from pipeline.training.preference_advice import require_learning
from pipeline.training.saving import RESIZE_LINGER, Saving
from pipeline.training.stage_metrics import StageMetrics, Trackers

if TYPE_CHECKING:
    from pion.evaluation.held_out import Evaluation as HeldOutLoss
    from pion.train.smaller_plan import StepDown
    from pion.train.trainer import TrainState
    from pipeline.training.setup import Setup


class Rank:
    """A rank that only computes: every rank but rank 0.

    `copies` are what rank 0 saves of this rank, or what this rank saves itself; None if rank 0 has
    all state.
    """

    def __init__(self, setup: Setup, copies: CopiesForRankZero | None = None) -> None:
        self._setup, self._copies = setup, copies
        self._trainer = setup.trainer

    def check(self) -> None:
        """Raise `Fenced` if another process owns the run now."""

    def before_step(self) -> None:
        """Check on the saves."""

    def log(self) -> None:
        """Keep and report the steps since the last call. Every rank calls it at the same steps.

        Raises `Trouble` on all ranks if a step went wrong.
        """
        self._trainer.drain_metrics()

    def stepped_down(self, change: StepDown) -> None:
        """Record and report that this attempt continues by a smaller plan."""

    def save_if_due(self) -> None:
        """Begin a save if it is due; pause training if nothing could be saved for too long."""
        self._follow()

    def save_before_evaluating(self, *, last: bool) -> None:
        """Save before an evaluation, because it may run out of memory."""
        self._follow()

    def evaluated(self, result: HeldOutLoss, on_token: Callable[[], None]) -> None:
        """Keep and report the held-out loss, and what the model writes after the job's prompts.

        `on_token` is called after each token that the model writes.
        """
        self._follow()
        if self._setup.trainer.plan.sharded:  # ranks compute together with such a model
            self._setup.samples(self._setup.context.job.evaluate.prompts, on_token)

    def finish(self) -> None:
        """Make the last step durable and record the stage as finished."""
        self._follow()

    def stop(self) -> None:
        """Make the last finished step durable, unless a step went wrong."""
        self._follow()

    def close(self) -> None:
        """End the uploader, and write the remaining metrics."""
        if self._copies is not None:
            self._copies.close()

    def _follow(self) -> None:
        """Copy what rank 0 saves meanwhile."""
        if self._copies is not None:
            self._copies.follow()


class RankZero(Rank):
    """Rank 0, which owns the run under `claim`."""

    def __init__(self, claim: Claim, setup: Setup, others: OtherRanks | None = None) -> None:
        super().__init__(setup)
        self._others = others
        context, stage = setup.context, setup.stage
        self._context, self._claim, self._stage = context, claim, stage
        self._steps = context.job.section(stage).total_steps
        # What the last evaluation has measured, as the stage's result has it.
        self._held_out: dict[str, float] = {}
        self._selects_best = context.job.selects_best(stage)
        self._metrics = StageMetrics(claim, stage, Trackers(context.job, stage), setup.keep_speed)
        self._metrics.log.adopt(setup.restored.unwritten_metrics)
        self._learning = advice_on(setup, claim, self._metrics.log)
        self._checkpointer = _open_checkpointer(claim, setup, self._metrics, others)
        state = setup.trainer.state()
        self._checkpointer.reserve(state.model, state.optimizer, state.pieces)
        run = run_reference(claim.store, claim.state.name)
        self._advice = Advice(context.job, stage, setup.trainer.step, run, context.report)
        self._cores = setup.busy_cores()
        settings = context.job.checkpoint
        cadence = SaveCadence(
            every_steps=settings.every_steps,
            every_seconds=settings.every_seconds,
            preemption_seconds=seconds_between_interruptions(
                claim.head, assumed=settings.preemption_hours * 3600
            ),
            last_save=time.monotonic(),
            floor_seconds=context.workspace.store.save_seconds,
            on_cpu=setup.on_cpu,
        )
        self._saving = Saving(self._checkpointer, settings, cadence, context.report)

    def check(self) -> None:
        self._claim.check()

    def before_step(self) -> None:
        self._claim.check()
        if self._saving.follow() and (saved := self._checkpointer.last) is not None:
            self._advice.saved(saved, self._claim.head, self._context.workspace)

    def log(self) -> None:
        try:
            rows = self._trainer.drain_metrics()
        except Trouble as trouble:
            self._metrics.append(trouble.metrics)
            self._metrics.trackers.rewound(trouble.step, trouble.what)
            raise
        if rows:
            self._metrics.append(rows)
            self._report_step(rows[-1])
            self._learning.trained(rows)
            if (found := self._setup.best_and_worst()) is not None:
                self._keep(found)
            require_learning(rows)
            if self._cores is not None:
                self._cores.look()
            self._metrics.flush_if_due()

    def stepped_down(self, change: StepDown) -> None:
        for line in self._setup.record_machine(self._claim.epoch, change):
            self._context.report(Note(line))

    def save_if_due(self) -> None:
        with self._listening():
            if self._saving.too_long_undurable() and self._sound:
                with self._context.watchdog.paused():
                    self._saving.hold(self._state(), self._context.should_stop)
            if self._saving.due(self._trainer.step):
                self._save()

    def save_before_evaluating(self, *, last: bool) -> None:
        with self._listening(), self._context.watchdog.paused():
            if last or self._selects_best:
                self._saving.complete(self._state())
            elif self._saving.due_before_evaluating():
                self._save()

    def evaluated(self, result: HeldOutLoss, on_token: Callable[[], None]) -> None:
        step = self._trainer.step
        measures: dict[str, Any] = {f"held_out_{n}": value for n, value in result.measures.items()}
        measures |= {"held_out": result.by_source} if result.by_source else {}
        self._held_out = {HELD_OUT_LOSS: result.loss, **measures}
        with self._listening():
            if self._selects_best:
                self._record_loss(result.loss)
            elif self._context.job.checkpoint.keep.best:
                # Works before and after the step's checkpoint is committed, so training does not
                # wait.
                self._checkpointer.note(step, {HELD_OUT_LOSS: result.loss})
        row = {"step": step, "held_out_loss": result.loss, "held_out_loss_sem": result.sem}
        self._metrics.append([row | measures])
        of, rewarded = result.measures, "reward" in result.measures
        accuracy = of.get("pass") if rewarded else of.get("accuracy")
        self._context.report(
            Evaluation(self._stage, step, result.loss, result.sem, accuracy, rewarded)
        )
        self._advice.evaluated(step, result.loss)
        for found in self._setup.samples(self._context.job.evaluate.prompts, on_token):
            self._keep(found)

    def finish(self) -> None:
        with self._listening(), self._context.watchdog.paused():
            self._saving.complete(self._state())
            self._metrics.flush()  # the stage's last commit carries them
        saved = self._checkpointer.last
        assert saved is not None
        steps = {"steps": self._trainer.step, "rows": self._trainer.next_row}
        result: dict[str, Any] = steps | self._held_out
        digest = self._context.request.digests[self._stage]
        self._context.patiently(
            partial(self._claim.finish_stage, self._stage, digest, result, saved.key)
        )
        self._context.report(StageState(self._stage, "done"))
        mark("boundary")

    def stop(self) -> None:
        with self._listening(), self._context.watchdog.paused():
            if self._sound:
                # Without the node that came, training would have gone on through an outage.
                patience = RESIZE_LINGER if self._context.is_resized() else None
                self._saving.complete(self._state(), patience)

    def close(self) -> None:
        with ExitStack() as closing:  # closes each, whatever closing another raises
            if self._others is not None:
                closing.callback(self._others.close)
            closing.callback(self._metrics.close)
            closing.callback(self._checkpointer.close)

    # ------------------------------------------------------------

    def _keep(self, found: Sample | Note) -> None:
        """Keep a text that the model has written, and report it."""
        if isinstance(found, Sample):
            sample = {"step": found.step, "prompt": found.prompt, "text": found.text}
            self._metrics.log.append({"step": found.step, "sample": sample})
        self._context.report(found)

    def _listening(self) -> AbstractContextManager[None]:
        """Let the other ranks listen while this one may save."""
        return nullcontext() if self._others is None else self._others.listening()

    @property
    def _sound(self) -> bool:
        """Whether no step has gone wrong. `log` raises the trouble on all ranks at once; until then
        nothing is saved."""
        return self._trainer.trouble() is None

    def _record_loss(self, loss: float) -> None:
        """Record the loss with the checkpoint of this step, before the next step is trained.

        So the choice of the best checkpoint does not depend on when a run was interrupted.
        """
        with self._context.watchdog.paused():
            self._saving.complete(self._state())
        saved = self._checkpointer.last
        assert saved is not None
        self._context.patiently(
            partial(
                self._claim.commit, lambda head: head.with_metrics(saved.key, {HELD_OUT_LOSS: loss})
            )
        )

    def _state(self) -> TrainState:
        """Log, so that the metrics are saved too, and return the state after the last step."""
        self.log()
        return self._trainer.state()

    def _save(self) -> None:
        """Begin a save, unless another one is being written or a step has gone wrong."""
        if self._sound and not self._checkpointer.busy:
            self._saving.begin(self._state())

    def _report_step(self, newest: dict[str, Any]) -> None:
        job, stage = self._context.job, self._stage
        tokens = job.section(stage).global_batch * job.seq_len(stage)
        if (
            "reward" in newest
        ):  # the speed is that of sampled tokens, of which a step has any number
            tokens = newest["tokens"]
        eta = (self._steps - newest["step"]) * tokens / newest["tokens_per_second"]
        status = {"stage": stage, "steps": self._steps, "eta": eta, **newest}
        self._context.report(
            Step(
                stage=stage,
                step=status["step"],
                steps=self._steps,
                loss=status["loss"],
                lr=status["lr"],
                tokens_per_second=status["tokens_per_second"],
                grad_norm=status["grad_norm"],
                mfu=status["mfu"],
                memory=status["memory"],
                eta=status["eta"],
                dollars=self._claim.spent.dollars or None,
                accuracy=status.get("accuracy", status.get("pass")),
                margin=status.get("margin"),
                reward=status.get("reward"),
                signal=status.get("signal"),
                judging=status.get("judge_seconds"),
            )
        )
        self._claim.heartbeat.report(**status)


def _open_checkpointer(
    claim: Claim, setup: Setup, metrics: StageMetrics, others: OtherRanks | None
) -> Checkpointer:
    context, stage = setup.context, setup.stage
    kept = context.job.checkpoint.keep
    best = HELD_OUT_LOSS if kept.best or context.job.selects_best(stage) else None
    borders = frozenset(context.job.borders)
    keep = Keep(last=kept.last, every=kept.every, best=best, steps=borders)
    uploader = context.uploader()
    uploader.snapshot.others = others
    return context.checkpointer(
        claim,
        CheckpointSeries(stage, context.request.digests[stage], setup.files, keep),
        resumed=setup.restored.found,
        metrics=metrics.log,
        uploader=uploader,
        workspace=context.workspace,
    )
