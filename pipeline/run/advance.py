"""Do what is left of a claimed run, stage by stage: prepare, train, evaluate, publish, report."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pion.errors import BadInput, Fenced, Interrupted, NotDurable, PionError, PlanFailed, Stopped
from pipeline.base.keep import keep_as_base
from pipeline.console.messages import Phase, Shown, StageState, Summary
from pipeline.cost.budget import over_budget
from pipeline.data.prepared import check_mixes
from pipeline.job import STAGES, Job
from pipeline.job.digest import digest_job, digest_of
from pipeline.job.stages import stages_until
from pipeline.machine.child_process import PART_OF_SEARCH
from pipeline.models.bring import run_reference
from pipeline.report.report_file import write_run_report
from pipeline.run.done_and_changed_stages import (
    StagePlan,
    StaleStage,
    plan_stages,
    stage_inputs,
)
from pipeline.run.drive_training import (
    RayNotStarted,
    WorkersTraining,
    fetch_ahead,
    start_workers,
    train_without,
    training_here,
)
from pipeline.run.finish import finish_evaluate, finish_publish, summary_rows
from pipeline.run.inputs import Start
from pipeline.run.journal import Journal
from pipeline.run.prepare import mend_data, prepare_data
from pipeline.state.checkpoints.retention import selected, sweep
from pipeline.state.claim import Claim, claim_again
from pipeline.state.kept_inputs import keep_inputs
from pipeline.state.notes.stop_requests import clear_stops
from pipeline.state.shared.folder import bring_data
from pipeline.state.shared.prune import delete_due
from pipeline.state.status.recorded_job import know_rows_of
from pipeline.state.stores import StoreError
from pipeline.state.stores.errors import verdict
from pipeline.state.stores.retry import Patience
from pipeline.training.context import smaller_plan_note
from pipeline.training.saving import linger_seconds
from pipeline.workers.cluster_size import gpus_of_workers
from pipeline.workers.ray_workers import RAY_ADDRESS

Plans = dict[str, StagePlan]


class Advance:
    """Advances one claimed run from where it is to its end.

    Attributes:
        claim: this process's claim. While workers train, rank 0 holds a later one.
        work_done: whether there may be work that is not committed.
    """

    def __init__(self, start: Start, claim: Claim, journal: Journal) -> None:
        self.start, self.claim, self.journal = start, claim, journal
        self.work_done = False
        options = start.options
        # The stages that this command does, and those that it does again.
        self._wanted = stages_until(start.job.stages, options.until)
        self._redone = () if options.redo is None else STAGES[STAGES.index(options.redo) :]
        self._has_redone = False
        self._patiently = Patience(
            linger_seconds(start.job.checkpoint), journal.note, start.stopping.sleep
        )

    def go(self, raised: StaleStage | None) -> None:
        """Prepare, train, evaluate and publish what is not done; release the claim at the end.

        `raised` is the stage that continues under another digest.
        """
        try:
            with self.journal.keeping_end():
                self._go(raised)
        finally:
            self._release()

    def _go(self, raised: StaleStage | None) -> None:
        try:
            plans = self._begin(raised)
            self._prepare_and_train(plans)
            for stage in ("evaluate", "publish"):
                if stage in self._wanted and plans[stage].state != "done":
                    self._stage_after_training(stage)
            self._end(plans)
        except StoreError as error:
            raise self._verdict(error) from error
        except (Fenced, Interrupted, Stopped):
            raise
        except (PionError, OSError) as error:
            if isinstance(error, BadInput):
                self._put_prepared_back()
            # Did another owner change what this process was reading or writing?
            with contextlib.suppress(StoreError):
                self.claim.confirm()
            raise

    def obey(self) -> None:
        """Ask for a stop, with SIGTERM's deadline, if the run has a new owner or a stop request, or
        the budget is spent. From any thread.

        While our workers own the run, only a new owner counts here. The workers obey the other two
        themselves, and save first.
        """
        claim, stopping = self.claim, self.start.stopping
        grace = self.start.job.checkpoint.grace
        if not claim.heartbeat.running:  # just released, or not owned yet
            return
        try:
            claim.check()
        except Fenced as fenced:
            stopping.ask(str(fenced), grace, error=Fenced)
            return
        if claim.heartbeat.lent:
            return
        reason = claim.heartbeat.stop_request or over_budget(self.start.job.budget, claim.spent)
        if reason is not None:
            stopping.ask(reason, grace, error=Stopped)

    # ------------------------------------------------------------ one method per part

    def _begin(self, raised: StaleStage | None) -> Plans:
        """Record the job that this run follows from now on, and return its plans."""
        start = self.start
        if start.owner.launch_id is None and clear_stops(start.run):  # a person wants it to resume
            self.journal.note("cleared a request to stop this run")
        self.claim.heartbeat.start()  # it also looks for requests
        if start.job.base is not None:
            keep_as_base(
                start.run, start.job.base, start.job.folder, self._say_or_stop, self._patiently
            )
        if start.job.kept_inputs:
            self._patiently(partial(keep_inputs, start.job, start.run))
        if digest_job(start.job).stages != start.digests.stages:
            raise BadInput(
                "A file that judges answers has changed while this command started. Nothing was "
                "started. Run the same command again."
            )
        self._record_job(raised)
        head = self.claim.head.without_stages(self._redone, 0.0)
        plans = {p.stage: p for p in plan_stages(start.job, start.digests, head)}
        if plans["prepare"].state == "done":
            self._drop_redone()
        elif start.options.redo == "prepare":
            # Workers wait until `prepare` is committed, so forget the old commit.
            self.claim.drop_stages(["prepare"])
        for plan in plans.values():
            self.journal.say(StageState(plan.stage, plan.state, plan.why))
        return plans

    def _prepare_and_train(self, plans: Plans) -> None:
        start, say = self.start, self.journal.say
        todo = [s for s in self._wanted if plans[s].state != "done"]
        training = [s for s in todo if s in start.job.train_stages]
        prepared = plans["prepare"].state == "done"
        if prepared and training:
            mend_data(start, self.claim, self._say_or_stop, self._patiently)
            self._check_mixes(training)
            self._measure_start()  # before workers own the run
        at_most: dict[str, Any] | None = None
        without_ray = False
        while True:
            try:
                with contextlib.ExitStack() as ending:
                    if not prepared and training and _workers_take_cpus(start.job):
                        self.work_done = True
                        self._prepare()
                        prepared = True
                    workers = start_workers(start, training, at_most, without_ray=without_ray)
                    self.work_done = True
                    if workers is not None:
                        ending.callback(workers.close)
                        if prepared and start.workspace.remote:
                            # Ray takes half a minute to start. Download what it needs meanwhile.
                            ahead = (start, self.claim, training[0], say)
                            threading.Thread(target=fetch_ahead, args=ahead, daemon=True).start()
                    if not prepared:
                        self._prepare()
                    if not training:
                        return
                    if workers is not None:
                        alive = self.journal.watchdog.progress
                        outcome = WorkersTraining(start, self.claim, workers, say).follow(alive)
                    else:
                        from pipeline.training.loop import train_stages

                        with self.journal.watchdog.paused():
                            outcome = train_stages(training_here(start, self.claim, training, say))
                    if outcome == "stopped":
                        raise start.stopping.error("every finished step is saved")
                    return self._claim_after_training()
            except RayNotStarted as failed:
                prepared = without_ray = True
                self.journal.note(train_without(start, failed))
            except PlanFailed as failed:
                # One of several workers could not compute a step as planned. All start again.
                prepared, at_most = True, failed.plan
                self._claim_after_training()
                self._patiently(self.claim.forget_attempts)
                self.journal.note(smaller_plan_note(failed))

    def _prepare(self) -> None:
        started = time.monotonic()
        reports = prepare_data(self.start, self.claim, self._say_or_stop, self._patiently)
        know_rows_of(self.start.job, reports)
        self._patiently(self._drop_redone)
        self.journal.say(Phase("prepare", time.monotonic() - started))
        if set(self._wanted) & set(self.start.job.train_stages):
            self._measure_start()  # before `prepare` is committed, because workers wait for that
        digest = self.start.digests.stages["prepare"]
        self._patiently(lambda: self.claim.finish_stage("prepare", digest, reports))
        self.journal.say(StageState("prepare", "done"))

    def _check_mixes(self, training: Sequence[str]) -> None:
        """Raise BadInput for phases that the rows which are prepared can't give: the job that
        prepared them may have had others."""
        if "pretrain" in training and self.start.job.mix_phases:
            bring = partial(bring_data, self.start.run, self.claim.head, "pretrain")
            check_mixes(self.start.job, self._patiently(bring))

    def _measure_start(self) -> None:
        """Measure the model that the run starts from, if any, unless that was done before."""
        from pipeline.run.measure_base import measure_base

        start, started = self.start, time.monotonic()
        if measure_base(start.job, start.run, start.digests, self._say_or_stop, self._patiently):
            self.journal.say(Phase("measured before training", time.monotonic() - started))

    def _claim_after_training(self) -> None:
        """Own the run again: rank 0 claimed it to train."""
        start = self.start
        self.claim.heartbeat.stop()
        self.claim = self._patiently(lambda: claim_again(start.run, start.owner, price=start.price))
        self.claim.heartbeat.start()

    def _stage_after_training(self, stage: str) -> None:
        start = self.start
        start.stopping.check()
        self.journal.say(StageState(stage, "started"))
        started = time.monotonic()
        mend_data(start, self.claim, self._say_or_stop, self._patiently)
        work: Callable[..., dict[str, Any]] = finish_evaluate
        if stage == "publish":
            work = partial(finish_publish, confirm=self.claim.confirm)
        result = work(start.job, start.run, start.digests, self._say_or_stop, self._patiently)
        digest = start.digests.stages[stage]
        chosen = selected(start.job, self.claim.head) if stage == "evaluate" else None
        key = None if chosen is None else chosen.best.key
        self._patiently(lambda: self.claim.finish_stage(stage, digest, result, key))
        self.journal.say(Phase(stage, time.monotonic() - started))
        self.journal.say(StageState(stage, "done"))

    def _end(self, plans: Plans) -> None:
        """Release the run; if it is finished, write its report and print the summary.

        A report or a summary that fails is only a warning: everything is committed by then.
        """
        start = self.start
        job, run = start.job, start.run
        self._patiently(self.journal.flush)
        self._patiently(lambda: sweep(self.claim))
        with self._only_a_warning("Nothing is lost: marked data that no run uses is still there."):
            delete_due(run.store, run.clock)
        self._patiently(lambda: self.claim.release(forget_attempts=True))
        name = run_reference(run.store, run.name)
        left = [s for s in job.stages if s not in self._wanted and plans[s].state != "done"]
        if left:
            if PART_OF_SEARCH not in os.environ:
                command = f"pion run {start.options.job_path}"
                self.journal.note(f"next: {left[0]}. To continue: {command}")
            return
        with self._only_a_warning(f"The run is finished. To write its report: pion report {name}"):
            self._patiently(lambda: write_run_report(job, run))
        with self._only_a_warning(f"The run is finished. To see its results: pion status {name}"):
            self.journal.say(Summary(self._patiently(lambda: summary_rows(job, run))))

    def _release(self) -> None:
        """Release the run, unless another process owns it now."""
        run, owner = self.start.run, self.start.owner
        with contextlib.suppress(PionError):
            head = run.read()
            if head is not None and head.owner is not None:
                if head.owner.session == owner.session and head.epoch != self.claim.epoch:
                    self.claim.heartbeat.stop()
                    # The last claim is a worker's.
                    self.claim = claim_again(run, owner)
                self.claim.release()

    # ------------------------------------------------------------ what they share

    @contextlib.contextmanager
    def _only_a_warning(self, later: str) -> Iterator[None]:
        try:
            yield
        except (BadInput, StoreError) as error:
            self.journal.note(f"warning: {error} {later}")

    def _say_or_stop(self, message: Shown) -> None:
        self.journal.say(message)
        self.obey()
        self.start.stopping.check()

    def _drop_redone(self) -> None:
        """Forget the stages to redo. Called after `prepare`, so bad input there loses nothing."""
        if self._redone:
            self.claim.drop_stages(self._redone)
            self._has_redone = True

    def _put_prepared_back(self) -> None:
        """Let HEAD list again what `--redo prepare` would have replaced: bad input loses nothing.

        Called after the workers have ended, because they train as soon as `prepare` is committed.
        """
        before = self.claim.before
        record = before.stages.get("prepare")
        missing = "prepare" not in self.claim.head.stages
        if self._redone[:1] == ("prepare",) and not self._has_redone and record and missing:
            with contextlib.suppress(StoreError):
                self.claim.commit(
                    lambda head: head.with_data(before.data).with_stage("prepare", record)
                )

    def _record_job(self, raised: StaleStage | None) -> None:
        start, text = self.start, self.start.options.job_text
        job_digest = digest_of({"text": text})
        start.run.write_job(job_digest, text)
        self.journal.flush()  # here, where the next commit carries it
        self.claim.set_job(job_digest)
        for stage, digest in start.digests.stages.items():
            description = {"format": 1, "inputs": stage_inputs(stage, start.digests)}
            start.run.write_stage(stage, digest, description)
        if raised is not None:
            old, new = raised.old_digest, start.digests.stages[raised.stage]
            self.claim.commit(lambda head: head.with_digest(raised.stage, old, new))
            steps = start.job.section(raised.stage).total_steps
            self.journal.note(
                f"{raised.stage} continues with this job's schedule, to step {steps:,}"
            )

    def _verdict(self, error: StoreError) -> PionError:
        if self.work_done:
            safe = f"Everything committed before is safe in {self.start.run.store.url}."
            return verdict(error, NotDurable, safe)
        return verdict(
            error,
            BadInput,
            "Nothing was started.",
            managed=self.start.owner.launch_id is not None,
        )


def _workers_take_cpus(job: Job) -> bool:
    """Return whether workers hold CPUs of the Ray in which `prepare` starts its tasks.

    They wait for `prepare`. If they started first, the tasks would wait for their CPUs for ever.
    Workers with GPUs take no CPUs, and a Ray of our own has no other tasks.
    """
    return bool(os.environ.get(RAY_ADDRESS)) and gpus_of_workers(job) == 0
