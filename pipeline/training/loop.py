"""One attempt at one training stage: step, evaluate, save, finish."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, Fenced, Stopped, Trouble
from pipeline.console.messages import Evaluation, Note, Phase, Sample, StageState, Step
from pipeline.kill_points import mark
from pipeline.state.claim import Claim
from pipeline.state.metrics import MetricsLog
from pipeline.state.stores import StoreError
from pipeline.training.cadence import seconds_between_interruptions
from pipeline.training.context import TrainingContext, phase
from pipeline.training.machine_note import record_machine
from pipeline.training.saving import Saving

if TYPE_CHECKING:
    from pipeline.state.checkpoints.checkpointer import Checkpointer
    from pipeline.training.start import Setup

_log = logging.getLogger(__name__)

SAMPLE_TOKENS = 48
FLUSH_SECONDS = 10.0


class StageTraining:
    """One attempt at one training stage."""

    def __init__(self, context: TrainingContext, claim: Claim | None, stage: str) -> None:
        context.stage = stage
        self.context, self.claim, self.stage = context, claim, stage
        self.job, self.group, self.report = context.job, context.group, context.report
        self.section = context.job.section(stage)
        self.digest = context.request.digests[stage]
        self.evaluated = False

    def run(self) -> bool:
        """Train until the stage is finished (True) or a stop is asked (False)."""
        from pipeline.training.start import start_stage

        started = time.monotonic()
        context = self.context
        context.watchdog.restart()
        setup = start_stage(
            context.request,
            context.run,
            context.workspace,
            self.stage,
            self.group,
            patiently=context.patiently,
        )
        self.trainer, self.held_out = setup.trainer, setup.held_out
        self.first_step = self.trainer.step
        self.tokenizer, self.tokenizer_file = setup.tokenizer, setup.tokenizer_file
        self.seq_len = self.job.sft_seq_len if self.stage == "sft" else self.job.data.seq_len
        for note in setup.notes:
            self.report(Note(note))
        self.report(StageState(self.stage, "started", setup.why, steps=self.section.steps))
        self.report(
            phase(
                f"{self.stage} restored" if setup.trainer.step else f"{self.stage} built", started
            )
        )
        if self.claim is not None:
            context.patiently(partial(self.claim.set_restore, self.stage, self.trainer.step))
            self._open_outputs(setup)
            for line in record_machine(context, self.claim.epoch, self.stage, self.trainer):
                self.report(Note(line))
        try:
            finished = self._loop()
            if self.claim is not None:
                if finished:
                    self._finish()
                else:
                    self._stop()
            return finished
        finally:
            with ExitStack() as closing:  # each is closed, whatever closing another raises
                closing.callback(setup.close)
                closing.callback(self.trainer.close)
                if self.claim is not None:
                    closing.callback(self.trackers.close)
                    closing.callback(self._flush_metrics)
                    closing.callback(self.checkpointer.close)

    def _open_outputs(self, setup: Setup) -> None:
        from pipeline.training.trackers import Trackers

        assert self.claim is not None
        context = self.context
        self.metrics = MetricsLog(context.run.store, context.run.name, self.stage, self.claim.epoch)
        self.metrics.adopt(setup.metrics)
        self.flusher = threading.Thread(target=self._flush_metrics, daemon=True)
        self.checkpointer = self._open_checkpointer(self.claim, setup)
        state = self.trainer.state()
        self.checkpointer.reserve(state.model, state.optimizer)
        checkpoint = self.job.checkpoint
        seconds = seconds_between_interruptions(
            self.claim.head.claims, checkpoint.preemption_hours * 3600
        )
        self.saving = Saving(
            self.checkpointer,
            self.stage,
            checkpoint,
            context.workspace,
            preemption_seconds=seconds,
            on_cpu=self.trainer.device.type == "cpu",
            state=self.trainer.state,
            prepare=self._log,
            report=self.report,
        )
        self.trackers = Trackers(self.job, self.stage)
        self.last_flush = time.monotonic()
        self.held_out_loss: float | None = None

    def _open_checkpointer(self, claim: Claim, setup: Setup) -> Checkpointer:
        from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
        from pipeline.state.checkpoints.retention import Keep
        from pipeline.state.checkpoints.snapshot import Snapshot
        from pipeline.state.checkpoints.uploader import Uploader

        keep = self.job.checkpoint.keep
        series = CheckpointSeries(
            self.stage,
            self.digest,
            files={
                "config.json": to_json(self.trainer.model.config.to_dict()),
                "tokenizer.json": self.tokenizer_file.read_bytes(),
            },
            keep=Keep(
                last=keep.last, every=keep.every, best="held_out_loss" if keep.best else None
            ),
        )
        return Checkpointer(
            claim,
            series,
            resumed=setup.found,
            metrics=self.metrics,
            uploader=Uploader(Snapshot(), patience=self.job.checkpoint.max_undurable),
            workspace=self.context.workspace,
        )

    def _loop(self) -> bool:
        trainer, steps = self.trainer, self.section.steps
        evaluate_every = self.job.evaluate.every or max(1, steps // 10)
        while trainer.step < steps:
            if self.claim is not None:
                self.claim.check()
                self.saving.follow()
                if self.saving.too_long_undurable() and self.trainer.trouble() is None:
                    with self.context.watchdog.paused():
                        self.saving.hold(self.context.should_stop)
            if not trainer.train_step(self.context.should_stop):
                return False
            self.context.watchdog.beat()
            last = trainer.step == steps
            first = not self.context.first_step_seen
            if first:
                self.context.first_step_seen = True
                self._report_first_step()
            if first or last or trainer.step % self.job.log.every == 0:
                self._log()
            if last or trainer.step % evaluate_every == 0:
                # Evaluation may run out of memory: what it may cost is safe before.
                self._log()
                if self.claim is not None:
                    with self.context.watchdog.paused():
                        self._save_before_evaluating(last)
                self._evaluate()
                self.context.watchdog.beat()
            if self.claim is not None and not last and self.saving.due(trainer.step):
                self._save()
        if self.first_step == steps:  # ended after its last save, before it was measured
            self._evaluate()
        return True

    def _save(self) -> None:
        """Begin a save, unless one is on its way or a step has gone wrong: that comes out on all
        ranks at once, at the next line of the log."""
        if self.checkpointer.busy:
            self.checkpointer.stats.skipped += 1
        elif self.trainer.trouble() is None:
            self.saving.begin()

    def _save_before_evaluating(self, last: bool) -> None:
        # A store's floor holds here too, except for keep.best: the loss belongs to a checkpoint of
        # this very step, and where saves follow each other as fast as the floor lets them, the last
        # is nearly always younger. Evaluations are few, and the floor leaves room for them.
        if last:
            self.saving.complete()
        elif self.job.checkpoint.keep.best or not self.saving.too_soon():
            self._save()

    def _stop(self) -> None:
        """Save the last finished step, as far as it is sound, and end as was asked."""
        with self.context.watchdog.paused():
            if self.trainer.trouble() is None:
                self.saving.complete()
        reason = self.context.stop_reason
        if reason is not None:
            raise Stopped(reason)

    def _report_first_step(self) -> None:
        since_start = time.time() - self.context.request.started
        self.report(Phase("first step", since_start, total=True))

    def _log(self) -> None:
        """Report the steps since the last call. Raises `Trouble`, on all ranks that ask."""
        try:
            rows = self.trainer.drain_metrics()
        except Trouble as trouble:
            self._keep_metrics(trouble.metrics)
            raise
        self._keep_metrics(rows)
        if self.claim is None or not rows:
            return
        newest = rows[-1]
        steps_left = self.section.steps - newest["step"]
        tokens_left = steps_left * self.section.global_batch * self.seq_len
        eta = tokens_left / newest["tokens_per_second"]
        status = {"stage": self.stage, "steps": self.section.steps, "eta": eta, **newest}
        self.report(step_message(status, self.claim.spent.dollars or None))
        self.claim.heartbeat.report(**status)
        batched = self.context.run.store.commits  # a commit carries what was gathered
        due = not batched and time.monotonic() - self.last_flush > FLUSH_SECONDS
        if due and not self.flusher.is_alive():
            # No step waits for a store, which may take long to say that it is down.
            self.flusher = threading.Thread(target=self._flush_metrics, daemon=True)
            self.flusher.start()
            self.last_flush = time.monotonic()

    def _keep_metrics(self, rows: list[dict[str, Any]]) -> None:
        if self.claim is not None:
            for row in rows:
                self.metrics.append(row)
            self.trackers.log(rows)

    def _flush_metrics(self) -> None:
        """Write metrics; where that fails they stay in memory, for the next save to write."""
        try:
            assert self.claim is not None
            self.claim.check()
            self.metrics.flush()
        except (StoreError, Fenced) as error:
            _log.warning("Metrics were not written: %s", error)

    def _evaluate(self) -> None:
        trainer = self.trainer
        if trainer.plan.compile and not self.evaluated:
            self.context.watchdog.restart()  # without gradients the model is compiled once more
        self.evaluated = True
        rows = range(min(self.job.evaluate.rows, self.held_out.total_rows))
        micro_batch = trainer.plan.micro_batch
        result = trainer.evaluate(
            self.held_out, rows, micro_batch, self.tokenizer.vocab_size, self._gets_on
        )
        if self.claim is None:
            return
        self.held_out_loss = result.loss
        if self.job.checkpoint.keep.best:
            # Its entry was listed before this was measured, or is yet to be: no step waits for it.
            self.checkpointer.note(trainer.step, {"held_out_loss": result.loss})
        row = {
            "step": trainer.step,
            "held_out_loss": result.loss,
            "held_out_loss_sem": result.sem,
        }
        self.metrics.append(row)
        self.trackers.log([row])
        self.report(Evaluation(self.stage, trainer.step, result.loss, result.sem))
        for prompt in self.job.evaluate.prompts:
            try:
                text = self._sample(prompt)
            except BadInput as error:  # a prompt longer than the context, say
                self.report(Note(f"no sample for {prompt[:40]!r}: {error}"))
                continue
            sample = {"step": trainer.step, "prompt": prompt, "text": text}
            self.metrics.append({"step": trainer.step, "sample": sample})
            self.report(Sample(self.stage, trainer.step, prompt, text))

    def _gets_on(self) -> None:
        """Called all the while a model is measured, which may take longer than many steps. Raises
        Fenced."""
        self.context.watchdog.progress()
        if self.claim is not None:
            self.claim.check()

    def _sample(self, prompt: str) -> str:
        from pion.data.conversation import Turn, render
        from pion.generate import generate_text

        text = prompt
        if self.stage == "sft":
            turns = [Turn("user", prompt)]
            text, _ = render(self.tokenizer, turns, add_generation_prompt=True)
        pieces = []
        for piece in generate_text(
            self.trainer.model, self.tokenizer, text, max_tokens=SAMPLE_TOKENS, seed=0
        ):
            pieces.append(piece)
            self._gets_on()
        return "".join(pieces)

    def _finish(self) -> None:
        assert self.claim is not None
        with self.context.watchdog.paused():
            self.saving.complete()
            self._flush_metrics()  # the commit that ends the stage carries its last rows
        assert self.checkpointer.last is not None
        result: dict[str, Any] = {"steps": self.trainer.step, "rows": self.trainer.next_row}
        if self.held_out_loss is not None:
            result["held_out_loss"] = self.held_out_loss
        key = self.checkpointer.last.key
        self.context.patiently(
            partial(self.claim.finish_stage, self.stage, self.digest, result, key)
        )
        self.report(StageState(self.stage, "done"))
        mark("boundary")


def step_message(status: dict[str, Any], dollars: float | None) -> Step:
    """Return what is said of a step with this `status`, when the run has cost `dollars`."""
    return Step(
        stage=status["stage"],
        step=status["step"],
        steps=status["steps"],
        loss=status["loss"],
        lr=status["lr"],
        tokens_per_second=status["tokens_per_second"],
        grad_norm=status["grad_norm"],
        mfu=status["mfu"],
        memory=status["memory"],
        eta=status["eta"],
        dollars=dollars,
    )


def to_json(value: Any) -> bytes:
    """Readable JSON, the same bytes for the same value."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
