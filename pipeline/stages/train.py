"""The training loop of pretrain and sft: restore, step, evaluate, save, finish.

One function serves a Ray worker and a process without Ray. Rank 0 owns the run's state and decides
what to restore; the other ranks are told.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, PionError, Stopped, Trouble
from pipeline.budget import over_budget, price_per_hour
from pipeline.cadence import seconds_between_interruptions
from pipeline.job import Job
from pipeline.marks import mark
from pipeline.stages.machine import record_machine
from pipeline.stages.request import Group, TrainRequest
from pipeline.stages.rewind import plan_rewind
from pipeline.stages.saving import Saving
from pipeline.state.claim import Claim
from pipeline.state.head import RunState
from pipeline.state.metrics import EventLog, MetricsLog
from pipeline.state.owner import Owner
from pipeline.state.records import Head
from pipeline.state.retention import sweep_abandoned
from pipeline.state.stores import StoreError, open_store
from pipeline.state.workspace import Workspace
from pipeline.watchdog import Watchdog

if TYPE_CHECKING:
    from pipeline.state.checkpoint import Checkpointer

Report = Callable[[dict[str, Any]], None]
MAX_ATTEMPTS = 5
SAMPLE_TOKENS = 48
FLUSH_SECONDS = 10.0
POLL_SECONDS, REMOTE_POLL_SECONDS = 0.1, 2.0
HANG_EXIT = 70


def train_stages(
    request: TrainRequest, group: Group, report: Report, should_stop: Callable[[], bool]
) -> str:
    """Advance the training stages until they are done ("done") or a stop is asked ("stopped").

    Raises `Stopped` when a request in the store or the budget asked for it, and PionError for what
    a person must decide; then nothing committed is lost.
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
    try:
        while (outcome := _attempt(context)) == "again":
            gc.collect()  # the trainer that went wrong, before the next one needs its memory
        return outcome
    finally:
        context.watchdog.close()


def _attempt(context: _Context) -> str:
    """One claim and what is trained under it: "done", "stopped", or "again" after trouble."""
    group = context.group
    claim = context.claim() if group.rank == 0 else None
    context.own(claim)
    done = False
    try:
        todo = group.from_rank_0(context.unfinished(claim.head) if claim else None)
        for stage in todo:
            done = _StageTraining(context, claim, stage).run()
            gc.collect()  # its trainer, before the next stage's needs the memory
            if not done:
                break
        done = done or not todo
        return "done" if done else "stopped"
    except Trouble as trouble:  # on every rank, at the same step
        refusal = group.from_rank_0(context.leave_out(trouble, claim) if claim else None)
        if refusal is not None:
            raise PionError(refusal) from None
        return "again"
    finally:
        if claim is not None and done:
            claim.stop_heartbeat()  # the driver claims next, to evaluate
        elif claim is not None:
            with suppress(PionError):
                claim.release()


class _Context:
    """What all stages and attempts of one process share."""

    def __init__(
        self, request: TrainRequest, group: Group, report: Report, should_stop: Callable[[], bool]
    ) -> None:
        self.request = request
        self.group = group
        self.report = report
        self.job = request.load_job()
        self.run = RunState(open_store(request.store), self.job.name)
        self.workspace = Workspace(self.run.store, self.run.name)
        self.stage = ""
        self.first_step_seen = False
        limit = self.job.hardware.hang_seconds
        self.watchdog = (
            Watchdog(self._end_hang, factor=0.0, at_least=limit)
            if limit is not None
            else Watchdog(self._end_hang)
        )
        self._asked = should_stop
        self._claim: Claim | None = None

    def should_stop(self) -> bool:
        """Whether anything asks this rank to stop: the driver, a request, the budget."""
        return self._asked() or self.stop_reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Why the run is to stay stopped, though nobody interrupts this process."""
        claim = self._claim
        if claim is None:
            return None
        if claim.stop_request is not None:
            return f"Stopped by request ({claim.stop_request}). Every finished step is saved."
        return over_budget(self.job.budget, claim.spent)

    def wait_for_prepare(self) -> bool:
        """Return once the prepared data is committed; False if asked to stop before."""
        wanted = self.request.digests["prepare"]
        while not self._asked():
            head = self.run.read()
            done = head.stages.get("prepare") if head else None
            if done is not None and done.digest == wanted:
                return True
            time.sleep(REMOTE_POLL_SECONDS if self.workspace.remote else POLL_SECONDS)
        return False

    def claim(self) -> Claim:
        """Own the run under a new epoch; give up when attempts keep failing without a commit."""
        price = price_per_hour(self.job.budget)
        claim = self.run.claim(Owner(**self.request.owner), price=price)
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

    def own(self, claim: Claim | None) -> None:
        """Listen to what `claim` is asked from now on."""
        self._claim = claim

    def unfinished(self, head: Head) -> list[str]:
        """The stages that `head` doesn't record as finished: an attempt may come after others."""
        digests = self.request.digests
        return [
            stage
            for stage in self.request.stages
            if stage not in head.stages or head.stages[stage].digest != digests[stage]
        ]

    def leave_out(self, trouble: Trouble, claim: Claim) -> str | None:
        """Record that the offending rows are left out from now on; why not, if it is hopeless."""
        stage, now = self.stage, self.run.clock.now()
        digest, limit = self.request.digests[stage], self.job.checkpoint.max_rewinds
        try:
            rows = plan_rewind(claim.head, stage, digest, trouble, limit, now)
        except PionError as error:
            return str(error)
        claim.skip_rows(stage, rows)
        events = EventLog(self.run.store, self.run.name, claim.epoch)
        events.append(
            "rewound", stage=stage, step=rows.step, rows=[rows.first, rows.stop], why=rows.why
        )
        events.flush()
        text = (
            f"{stage} step {rows.step:,} gave {rows.why}: going back to the last checkpoint and "
            f"leaving out rows {rows.first:,} to {rows.stop - 1:,}"
        )
        self.report({"type": "note", "text": text})
        return None

    def _end_hang(self, text: str) -> None:
        """End this process: Ray starts the workers anew, and without Ray exit 75 asks for it.

        Whatever rank hangs, rank 0 soon waits for it: the others leave it to rank 0, which may also
        be waiting for its store with good reason.
        """
        if self.group.rank > 0:
            return
        note = {"type": "note", "text": f"training hangs. {text}"}
        saying = threading.Thread(target=self.report, args=(note,), daemon=True)
        saying.start()
        saying.join(1.0)  # the line to the driver may hang as well
        os._exit(HANG_EXIT if self.request.by_ray else 75)


def failed_attempts(head: Head) -> int:
    """Attempts to train, before the present claim, since progress was last committed.

    A `pion run` claims once for itself and once for each start of its workers.
    """
    claims = [claim for claim in head.claims if claim.epoch > head.committed_epoch]
    return len(claims) - len({claim.owner.session for claim in claims}) - 1


class _StageTraining:
    """One attempt at one training stage."""

    def __init__(self, context: _Context, claim: Claim | None, stage: str) -> None:
        context.stage = stage
        self.context, self.claim, self.stage = context, claim, stage
        self.job, self.group, self.report = context.job, context.group, context.report
        self.section = context.job.section(stage)
        self.digest = context.request.digests[stage]

    def run(self) -> bool:
        """Train until the stage is finished (True) or a stop is asked (False)."""
        from pipeline.stages.start import start_stage

        started = time.monotonic()
        context = self.context
        with context.watchdog.paused():  # a download has time-outs of its own
            setup = start_stage(
                context.request, context.run, context.workspace, self.stage, self.group
            )
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
            self._open_outputs(setup.ancestor, setup.metrics)
            for line in record_machine(
                context.run, self.claim.epoch, self.job, self.stage, self.trainer
            ):
                self.report({"type": "note", "text": line})
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

    def _open_outputs(self, ancestor: str | None, metrics: str) -> None:
        from pipeline.trackers import Trackers

        assert self.claim is not None
        context = self.context
        self.metrics = MetricsLog(context.run.store, context.run.name, self.stage, self.claim.epoch)
        self.metrics.adopt(metrics)
        self.checkpointer = self._open_checkpointer(self.claim, ancestor)
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
            state=self.trainer.state,
            prepare=self._log,
            report=self.report,
        )
        self.trackers = Trackers(self.job, self.stage)
        self.last_flush = time.monotonic()
        self.held_out_loss: float | None = None

    def _open_checkpointer(self, claim: Claim, ancestor: str | None) -> Checkpointer:
        from pipeline.state.checkpoint import Checkpointer
        from pipeline.state.retention import Keep

        keep = self.job.checkpoint.keep
        return Checkpointer(
            claim,
            self.stage,
            self.digest,
            files={
                "config.json": to_json(self.trainer.model.config.to_dict()),
                "tokenizer.json": self.tokenizer_file.read_bytes(),
            },
            keep=Keep(
                last=keep.last, every=keep.every, best="held_out_loss" if keep.best else None
            ),
            ancestor=ancestor,
            before_commit=self.metrics.flush,
            unwritten=self.metrics.unwritten,
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
                        self.saving.hold()
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
        return True

    def _save(self) -> None:
        """Begin a save, unless one is on its way or a step has gone wrong: that comes out on all
        ranks at once, at the next line of the log."""
        if self.checkpointer.busy:
            self.checkpointer.stats.skipped += 1
        elif self.trainer.trouble() is None:
            self.saving.begin()

    def _save_before_evaluating(self, last: bool) -> None:
        if last:
            self.saving.complete()
        else:
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
        self.report({"type": "phase", "name": "first step", "seconds": since_start, "total": True})

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
        self.report({"type": "step", **status, "dollars": self.claim.spent.dollars or None})
        self.claim.report(**status)
        batched = self.context.run.store.commits  # a commit carries what was gathered
        if not batched and time.monotonic() - self.last_flush > FLUSH_SECONDS:
            self._flush_metrics()
            self.last_flush = time.monotonic()

    def _keep_metrics(self, rows: list[dict[str, Any]]) -> None:
        if self.claim is not None:
            for row in rows:
                self.metrics.append(row)
            self.trackers.log(rows)

    def _flush_metrics(self) -> None:
        """Write metrics; they stay in memory while the store is down."""
        try:
            self.metrics.flush()
        except StoreError as error:
            if not error.outage:
                raise

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
            try:
                self.claim.commit(lambda head: head.with_metrics(saved.key, metrics))
            except StoreError as error:
                if not error.outage:
                    raise

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

    def _finish(self) -> None:
        assert self.claim is not None
        with self.context.watchdog.paused():
            self.saving.complete()
        assert self.checkpointer.last is not None
        result: dict[str, Any] = {"steps": self.trainer.step, "rows": self.trainer.next_row}
        if self.held_out_loss is not None:
            result["held_out_loss"] = self.held_out_loss
        self.claim.finish_stage(
            self.stage, self.digest, result, checkpoint_key=self.checkpointer.last.key
        )
        self.report({"type": "stage", "stage": self.stage, "state": "done", "why": ""})
        mark("boundary")


def _say_nothing(message: dict[str, Any]) -> None:
    """Rank 0 reports for all."""


def _threads(job: Job, group: Group) -> int:
    return job.hardware.threads or max(1, (os.cpu_count() or 1) // group.world_size)


def _phase(name: str, started: float) -> dict[str, Any]:
    return {"type": "phase", "name": name, "seconds": time.monotonic() - started}


def to_json(value: Any) -> bytes:
    """Readable JSON, the same bytes for the same value."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
