"""The training loop of pretrain and sft: restore, step, evaluate, checkpoint, finish.

One function serves a Ray worker and a process without Ray. Rank 0 owns the run's state and decides
what to restore; the other ranks are told.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.cadence import SaveCadence
from pipeline.job import Job
from pipeline.stages.request import Group, TrainRequest
from pipeline.state.head import Claim, RunState
from pipeline.state.metrics import EventLog, MetricsLog
from pipeline.state.owner import Owner
from pipeline.state.records import Head
from pipeline.state.retention import sweep_abandoned
from pipeline.state.stores import open_store

Report = Callable[[dict[str, Any]], None]
MAX_ATTEMPTS = 5
SAMPLE_TOKENS = 48
FLUSH_SECONDS = 10.0


def train_stages(
    request: TrainRequest, group: Group, report: Report, should_stop: Callable[[], bool]
) -> str:
    """Advance the training stages until they are done ("done") or a stop is asked ("stopped").

    Raises PionError for what a person must decide; then nothing committed is lost.
    """
    started = time.monotonic()
    import torch

    if group.rank > 0:
        report = _say_nothing
    report(_phase("torch imported", started))
    torch.set_num_threads(_threads(request.load_job(), group))
    context = _Context(request, group, report, should_stop)
    started = time.monotonic()
    if not group.from_rank_0(context.wait_for_prepare() if group.rank == 0 else None):
        return "stopped"
    report(_phase("waited for data", started))
    claim = context.claim() if group.rank == 0 else None
    done = False
    try:
        done = all(_StageTraining(context, claim, stage).run() for stage in request.stages)
        return "done" if done else "stopped"
    finally:
        if claim is not None and done:
            claim.stop_heartbeat()  # the driver claims next, to evaluate
        elif claim is not None:
            with suppress(PionError):
                claim.release()


class _Context:
    """What all stages of one attempt share."""

    def __init__(
        self, request: TrainRequest, group: Group, report: Report, should_stop: Callable[[], bool]
    ) -> None:
        self.request = request
        self.group = group
        self.report = report
        self.should_stop = should_stop
        self.job = request.load_job()
        self.run = RunState(open_store(request.store), self.job.name)
        self.first_step_seen = False

    def wait_for_prepare(self) -> bool:
        """Return once the prepared data is committed; False if asked to stop before."""
        wanted = self.request.digests["prepare"]
        while not self.should_stop():
            head = self.run.read()
            done = head.stages.get("prepare") if head else None
            if done is not None and done.digest == wanted:
                return True
            time.sleep(0.1)
        return False

    def claim(self) -> Claim:
        """Own the run under a new epoch; give up when attempts keep failing without a commit."""
        claim = self.run.claim(Owner(**self.request.owner))
        sweep_abandoned(claim)
        if failed_attempts(claim.head) >= MAX_ATTEMPTS:
            claim.release(forget_attempts=True)
            raise PionError(
                f"{MAX_ATTEMPTS} attempts in a row ended before anything was committed. What was "
                "committed before is safe. Mend the cause (the last error is above, or in the "
                "machine's log if it was out of memory), then run the same command again."
            )
        claim.start_heartbeat()
        return claim


def failed_attempts(head: Head) -> int:
    """Attempts to train, before the present claim, since progress was last committed.

    A `pion run` claims once for itself and once for each start of its workers.
    """
    claims = [claim for claim in head.claims if claim.epoch > head.committed_epoch]
    return len(claims) - len({claim.owner.session for claim in claims}) - 1


class _StageTraining:
    """One attempt at one training stage."""

    def __init__(self, context: _Context, claim: Claim | None, stage: str) -> None:
        self.context, self.claim, self.stage = context, claim, stage
        self.job, self.group, self.report = context.job, context.group, context.report
        self.section = context.job.section(stage)
        self.digest = context.request.digests[stage]

    def run(self) -> bool:
        """Train until the stage is finished (True) or a stop is asked (False)."""
        from pipeline.stages.start import start_stage

        started = time.monotonic()
        setup = start_stage(self.context.request, self.context.run, self.stage, self.group)
        self.trainer, self.held_out = setup.trainer, setup.held_out
        self.tokenizer, self.tokenizer_file = setup.tokenizer, setup.tokenizer_file
        self.seq_len = self.job.sft_seq_len if self.stage == "sft" else self.job.data.seq_len
        for note in setup.notes:
            self.report({"type": "note", "text": note})
        self.report(
            {
                "type": "stage",
                "stage": self.stage,
                "state": "started",
                "why": setup.why,
                "steps": self.section.steps,
            }
        )
        self.report(
            _phase(
                f"{self.stage} restored" if setup.trainer.step else f"{self.stage} built", started
            )
        )
        if self.claim is not None:
            self.claim.set_restore(self.stage, self.trainer.step)
            self._open_outputs(setup.ancestor)
            self._record_machine()
        try:
            finished = self._loop()
            if self.claim is not None:
                if finished:
                    self._finish()
                else:
                    self._save(wait=True)
            return finished
        finally:
            with ExitStack() as closing:  # each is closed, whatever closing another raises
                closing.callback(setup.close)
                closing.callback(self.trainer.close)
                if self.claim is not None:
                    closing.callback(self.trackers.close)
                    closing.callback(self.metrics.flush)
                    closing.callback(self.checkpointer.close)

    def _open_outputs(self, ancestor: str | None) -> None:
        from pipeline.state.checkpoint import Checkpointer
        from pipeline.state.retention import Keep
        from pipeline.trackers import Trackers

        assert self.claim is not None
        run, checkpoint = self.context.run, self.job.checkpoint
        self.metrics = MetricsLog(run.store, run.name, self.stage, self.claim.epoch)
        self.checkpointer = Checkpointer(
            self.claim,
            self.stage,
            self.digest,
            files={
                "config.json": to_json(self.trainer.model.config.to_dict()),
                "tokenizer.json": self.tokenizer_file.read_bytes(),
            },
            keep=Keep(
                last=checkpoint.keep.last,
                every=checkpoint.keep.every,
                best="held_out_loss" if checkpoint.keep.best else None,
            ),
            ancestor=ancestor,
            before_commit=self.metrics.flush,
        )
        self.trackers = Trackers(self.job, self.stage)
        self.cadence = SaveCadence(
            every_steps=checkpoint.every_steps,
            every_seconds=checkpoint.every_seconds,
            preemption_seconds=checkpoint.preemption_hours * 3600,
            last_save=time.monotonic(),
        )
        self.last_flush = time.monotonic()
        self.held_out_loss: float | None = None
        self.durable_step: int | None = None

    def _record_machine(self) -> None:
        """Note where this attempt trains, for the lineage; what it reached is in the metrics."""
        from pion.train.hardware import device_name

        assert self.claim is not None
        events = EventLog(self.context.run.store, self.context.run.name, self.claim.epoch)
        plan = self.trainer.plan
        events.append(
            "training",
            stage=self.stage,
            from_step=self.trainer.step,
            host=socket.gethostname(),
            device=device_name(self.trainer.device),
            workers=plan.world_size,
            micro_batch=plan.micro_batch,
            grad_accum=self.trainer.grad_accum,
            dtype=plan.dtype,
        )
        events.flush()

    def _loop(self) -> bool:
        trainer, steps = self.trainer, self.section.steps
        evaluate_every = self.job.evaluate.every or max(1, steps // 10)
        while trainer.step < steps:
            if self.claim is not None:
                self.claim.check()
                self._report_durable()
            if not trainer.train_step(self.context.should_stop):
                return False
            last = trainer.step == steps
            first = not self.context.first_step_seen
            if first:
                self.context.first_step_seen = True
                self._report_first_step()
            if first or last or trainer.step % self.job.log.every == 0:
                self._log()
            if last or trainer.step % evaluate_every == 0:
                if self.claim is not None:
                    self._save(wait=last)  # evaluation may run out of memory
                self._evaluate()
            if (
                self.claim is not None
                and not last
                and self.cadence.due(trainer.step, time.monotonic())
            ):
                self._save(wait=False)
        return True

    def _report_first_step(self) -> None:
        since_start = time.time() - self.context.request.started
        self.report({"type": "phase", "name": "first step", "seconds": since_start, "total": True})

    def _log(self) -> None:
        rows = self.trainer.drain_metrics()
        if self.claim is None or not rows:
            return
        for row in rows:
            self.metrics.append(row)
        self.trackers.log(rows)
        newest = rows[-1]
        steps_left = self.section.steps - newest["step"]
        tokens_left = steps_left * self.section.global_batch * self.seq_len
        eta = tokens_left / newest["tokens_per_second"]
        status = {"stage": self.stage, "steps": self.section.steps, "eta": eta, **newest}
        self.report({"type": "step", **status})
        self.claim.report(**status)
        if time.monotonic() - self.last_flush > FLUSH_SECONDS:
            self.metrics.flush()
            self.last_flush = time.monotonic()

    def _evaluate(self) -> None:
        trainer = self.trainer
        rows = range(min(self.job.evaluate.rows, self.held_out.total_rows))
        micro_batch = trainer.plan.micro_batch
        result = trainer.evaluate(self.held_out, rows, micro_batch, self.tokenizer.vocab_size)
        if self.claim is None:
            return
        self.held_out_loss = result.loss
        if self.job.checkpoint.keep.best:
            self._note_held_out_loss()
        row = {
            "step": trainer.step,
            "held_out_loss": result.loss,
            "held_out_loss_sem": result.sem,
        }
        self.metrics.append(row)
        self.trackers.log([row])
        self.report(
            {
                "type": "eval",
                "stage": self.stage,
                "step": trainer.step,
                "loss": result.loss,
                "loss_sem": result.sem,
            }
        )
        for prompt in self.job.evaluate.prompts:
            try:
                text = self._sample(prompt)
            except BadInput as error:  # a prompt longer than the context, say
                self.report({"type": "note", "text": f"no sample for {prompt[:40]!r}: {error}"})
                continue
            sample = {"step": trainer.step, "prompt": prompt, "text": text}
            self.metrics.append({"step": trainer.step, "sample": sample})
            self.report({"type": "sample", "stage": self.stage, **sample})

    def _note_held_out_loss(self) -> None:
        """Write the loss into the checkpoint's entry, which was listed before it was measured."""
        assert self.claim is not None
        self.checkpointer.wait()
        saved = self.checkpointer.last
        if saved is not None and saved.step == self.trainer.step:
            metrics = {"held_out_loss": self.held_out_loss or 0.0}
            self.claim.commit(lambda head: head.with_metrics(saved.key, metrics))

    def _sample(self, prompt: str) -> str:
        from pion.data.chat import Turn, render
        from pion.generate import generate_text

        text = prompt
        if self.stage == "sft":
            turns = [Turn("user", prompt)]
            text, _ = render(self.tokenizer, turns, add_generation_prompt=True)
        pieces = generate_text(
            self.trainer.model, self.tokenizer, text, max_tokens=SAMPLE_TOKENS, seed=0
        )
        return "".join(pieces)

    def _save(self, wait: bool) -> None:
        """Save the last finished step; without `wait`, skipped while another save is written."""
        if wait:
            self.checkpointer.wait()
        elif self.checkpointer.busy:
            return
        self._log()  # the rows of a saved step are saved with it
        state = self.trainer.state()
        started = time.monotonic()
        if self.checkpointer.save(state.model, state.optimizer, state.meta):
            stats = self.checkpointer.stats
            self.cadence.saved(started, stats.stall_seconds, stats.write_seconds)
        if wait:
            self.checkpointer.wait()
            self._report_durable()

    def _report_durable(self) -> None:
        """Say so when another checkpoint has become durable."""
        stats = self.checkpointer.stats
        if stats.durable_step is not None and stats.durable_step != self.durable_step:
            self.durable_step = stats.durable_step
            self.report(
                {
                    "type": "checkpoint",
                    "stage": self.stage,
                    "step": stats.durable_step,
                    "stall": stats.stall_seconds,
                    "interval": self.cadence.interval,
                }
            )

    def _finish(self) -> None:
        assert self.claim is not None
        self._save(wait=True)
        assert self.checkpointer.last is not None
        result: dict[str, Any] = {"steps": self.trainer.step, "rows": self.trainer.next_row}
        if self.held_out_loss is not None:
            result["held_out_loss"] = self.held_out_loss
        self.claim.finish_stage(
            self.stage, self.digest, result, checkpoint_key=self.checkpointer.last.key
        )
        self.report({"type": "stage", "stage": self.stage, "state": "done", "why": ""})


def _say_nothing(message: dict[str, Any]) -> None:
    """Rank 0 reports for all."""


def _threads(job: Job, group: Group) -> int:
    return job.hardware.threads or max(1, (os.cpu_count() or 1) // group.world_size)


def _phase(name: str, started: float) -> dict[str, Any]:
    return {"type": "phase", "name": name, "seconds": time.monotonic() - started}


def to_json(value: Any) -> bytes:
    """Readable JSON, the same bytes for the same value."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
