"""Do what is left of a claimed run, stage by stage: prepare, train, evaluate, publish, report."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import Fenced, PionError, Stopped
from pipeline.console.display import Display
from pipeline.console.messages import (
    CheckpointSaved,
    FitEnded,
    Note,
    Phase,
    PrepareProgress,
    Shown,
    StageState,
    Step,
    Summary,
    Trained,
    WorkerFailed,
    WorkerStarted,
)
from pipeline.cost.budget import over_budget, price_per_hour
from pipeline.cost.timeline import WAITED
from pipeline.job import STAGES, Job
from pipeline.job.digest import Digests, digest_of
from pipeline.machine.gpu_count import gpu_count
from pipeline.machine.rented import RentedMachine, claim_event, this_machine
from pipeline.report.of_run import write_run_report
from pipeline.run.finish import finish_evaluate, finish_publish, summary_rows
from pipeline.run.preflight import worker_count
from pipeline.run.signals import StoppingOnSignals
from pipeline.run.stage_plan import (
    StagePlan,
    plan_stages,
    stage_inputs,
)
from pipeline.state.checkpoints.retention import sweep
from pipeline.state.claim import Claim, claim_again
from pipeline.state.error_codec import error_from_json
from pipeline.state.metrics import EventLog
from pipeline.state.owner import Owner, differences
from pipeline.state.patience import Patience
from pipeline.state.run_state import RunState
from pipeline.state.stop_requests import clear_stops
from pipeline.state.stores import StoreError
from pipeline.state.stores.verdict import Moment, verdict
from pipeline.state.workspace import Workspace
from pipeline.training.saving import linger_seconds

if TYPE_CHECKING:
    from pipeline.workers.ray_workers import RayWorkers

# How long workers may take to save after they are asked to stop, if the store can be reached.
STOP_SECONDS = 30.0
# How long to wait after a worker has hung up. Its last messages may still be on their way, or those
# of another worker.
GONE_SECONDS = 2.0
# The number of the first save whose time is typical. Earlier saves of a process also allocate
# memory and open connections.
TYPICAL_SAVE = 3
# A wait for another owner that is longer than these seconds is reported.
WORTH_NOTING = 1.0


@dataclass
class Options:
    """What the command line adds to the job."""

    job_path: str = "JOB"
    job_text: str = ""
    redo: str | None = None
    take_over: bool = False
    unattended: bool = field(default_factory=lambda: not sys.stdin.isatty())


class Advance:
    """One `pion run` that has something to do."""

    def __init__(
        self,
        job: Job,
        options: Options,
        display: Display,
        digests: Digests,
        run: RunState,
        owner: Owner,
        claim: Claim,
        started: float,
        stopping: StoppingOnSignals,
    ) -> None:
        self.job, self.options, self.display = job, options, display
        self.digests, self.run, self.owner, self.claim = digests, run, owner, claim
        self.started, self.stopping = started, stopping
        self.workspace = Workspace(run.store, run.name)
        # Under the driver's own epoch, which it may write events of while a worker owns the run.
        self.events = EventLog(run.store, run.name, claim.epoch)
        self.work_done = False
        self._patiently = Patience(
            linger_seconds(job.checkpoint),
            lambda text: self.say(Note(text)),
            stopping.sleep,
        )
        self.machine, self.price = this_machine(started), price_per_hour(job.budget)

    def introduce(self, waited: float) -> None:
        """Say, and note as events, what is new in this run: where it is, what it cost to get here,
        other code. `waited` is how many seconds the run had another owner."""
        about = claim_event(
            self.machine,
            self.price,
            session=self.owner.session,
            started=self.owner.started_at,
            reason=self.claim.reason,
        )
        self.events.append(about.pop("event"), **about)
        if self.machine is not None and self.machine.phases:
            parts = dict(self.machine.phases)
            seconds = sum(parts.values())
            self.say(Phase("boot", seconds, parts=parts))
        if waited >= WORTH_NOTING:
            self.say(Phase(WAITED, waited))
        if self.claim.before.claims:
            changes = differences(self.claim.before.claims[0].owner, self.owner)
            for change in changes:
                text = f"changed since this run was last worked on: {change}"
                self.say(Note(text))
            if changes:
                self.events.append("changed", changes=changes)

    def go(self, raised: StagePlan | None) -> None:
        """Prepare, train, evaluate and publish what is not done; release the claim at the end."""
        workers: RayWorkers | None = None
        try:
            if self.owner.launch_id is None and clear_stops(self.run):  # a person wants it to go on
                self.say(Note("cleared a request to stop this run"))
            self.claim.heartbeat.start()  # which looks for requests
            self._record_job(raised)
            plans = self._plans()
            if plans["prepare"].state == "done":
                self._drop_redone()
            elif self.options.redo == "prepare":
                # Workers wait for `prepare` to be committed: it must not look as if it were.
                self.claim.drop_stages(["prepare"])
            training = [s for s in self.job.train_stages if plans[s].state != "done"]
            for plan in plans.values():
                self.say(StageState(plan.stage, plan.state, plan.why))
            if training and worker_count(self.job) > 0:
                workers = self._start_workers(training)
            if plans["prepare"].state != "done":
                self.work_done = True
                self._prepare()
            elif training and workers is not None and self.workspace.remote:
                # While Ray starts, which takes half a minute, what it will need comes down.
                threading.Thread(target=self._fetch_ahead, args=(training[0],), daemon=True).start()
            self.work_done = True
            if training:
                self._train(training, workers)
            if workers is not None:
                workers.close()
                workers = None
            for stage in ("evaluate", "publish"):
                if stage in plans and plans[stage].state != "done":
                    self._stage_after_training(stage)
            self._patiently(self.events.flush)
            self._patiently(lambda: sweep(self.claim))
            self._patiently(lambda: self.claim.release(forget_attempts=True))
            self._patiently(lambda: write_run_report(self.job, self.run))
            rows = self._patiently(lambda: summary_rows(self.job, self.run))
            self.say(Summary(rows))
        except StoreError as error:
            raise self._verdict(error) from error
        finally:
            if workers is not None:
                workers.close()
            self._release()

    def _release(self) -> None:
        """Let anyone claim the run, unless somebody else already has."""
        with contextlib.suppress(PionError):
            head = self.run.read()
            if head is not None and head.owner is not None:
                if head.owner.session == self.owner.session and head.epoch != self.claim.epoch:
                    self.claim.heartbeat.stop()
                    # A worker's claim stood last.
                    self.claim = claim_again(self.run, self.owner)
                self.claim.release()

    def say(self, message: Shown) -> None:
        """Show progress, and keep what the start-up cost by phase."""
        if isinstance(message, Step):
            message = dataclasses.replace(message, dollars_per_hour=self.price)
        self.display.say(message)
        if isinstance(message, Phase):
            self._keep_phase(message)
            if message.total:
                if self.machine is not None:
                    self._say_paid_to_first_step(self.machine, message.seconds)
                # Training does not wait for it, nor end because of it.
                threading.Thread(target=self._flush_if_possible, daemon=True).start()
        elif isinstance(message, CheckpointSaved) and message.saved == TYPICAL_SAVE:
            self.events.append(
                "saved",
                stage=message.stage,
                step=message.step,
                stall=message.stall,
                write=message.write,
            )

    def _keep_phase(self, phase: Phase) -> None:
        """Note it as an event, without what was not said of it."""
        total = {"total": True} if phase.total else {}
        parts = {"parts": phase.parts} if phase.parts is not None else {}
        self.events.append("phase", name=phase.name, seconds=phase.seconds, **total, **parts)

    def _flush_if_possible(self) -> None:
        with contextlib.suppress(StoreError):  # kept, and written with what comes later
            self.events.flush()

    def _say_paid_to_first_step(self, machine: RentedMachine, seconds: float) -> None:
        """`seconds` is what `pion run` took; the machine was paid for before."""
        parts = {**machine.phases, "pion run": seconds}
        paid = Phase("paid to first step", sum(parts.values()), parts=parts)
        self.display.say(paid)
        self._keep_phase(paid)

    def _say_or_stop(self, message: Shown) -> None:
        self.say(message)
        self.obey()
        self.stopping.check()

    def obey(self) -> None:
        """Ask for a stop in time, as SIGTERM does, if the claim has heard of a new owner or a stop
        request, or the budget is spent. From any thread.

        While workers of ours own the run only a new owner counts: those who train obey the rest by
        themselves, and save first.
        """
        claim, grace = self.claim, self.job.checkpoint.grace
        if not claim.heartbeat.running:  # just released, or not owned yet
            return
        try:
            claim.check()
        except Fenced as fenced:
            self.stopping.ask(str(fenced), grace, error=Fenced)
            return
        if claim.heartbeat.lent:
            return
        reason = claim.heartbeat.stop_request or over_budget(self.job.budget, claim.spent)
        if reason is not None:
            self.stopping.ask(reason, grace, error=Stopped)

    def _plans(self) -> dict[str, StagePlan]:
        """What is to do once the stages to redo are dropped."""
        head = self.claim.head.without_stages(self._redone, 0.0)
        return {p.stage: p for p in plan_stages(self.job, self.digests, head)}

    @property
    def _redone(self) -> tuple[str, ...]:
        redo = self.options.redo
        return () if redo is None else STAGES[STAGES.index(redo) :]

    def _drop_redone(self) -> None:
        """Forget the stages to redo. After `prepare`, so that bad input there costs nothing."""
        if self._redone:
            self.claim.drop_stages(self._redone)

    def _record_job(self, raised: StagePlan | None) -> None:
        job_digest = digest_of({"text": self.options.job_text})
        self.run.write_job(job_digest, self.options.job_text)
        self.events.flush()  # here, where the next commit carries it
        self.claim.set_job(job_digest)
        for stage in self.job.stages:
            self.run.write_stage(
                stage,
                self.digests.stages[stage],
                {"format": 1, "inputs": stage_inputs(stage, self.digests)},
            )
        if raised is not None:
            assert raised.old_digest is not None
            old, new = raised.old_digest, self.digests.stages[raised.stage]
            self.claim.commit(lambda head: head.with_digest(raised.stage, old, new))
            steps = self.job.section(raised.stage).steps
            text = f"{raised.stage} goes on with the schedule of this job, to step {steps:,}"
            self.say(Note(text))

    def _start_workers(self, training: list[str]) -> RayWorkers:
        from pipeline.training.train_request import TrainRequest
        from pipeline.workers.ray_workers import RayWorkers

        count = worker_count(self.job)
        request = TrainRequest.of(
            self.job,
            self.digests,
            self.owner,
            training,
            gpus=min(count, gpu_count()),
            by_ray=True,
            started=self.started,
        )
        workers = RayWorkers(request, count)
        workers.start()
        return workers

    def _prepare(self) -> None:
        from pipeline.stages.prepare import prepare_pretrain, prepare_sft

        started = time.monotonic()
        reports: dict[str, Any] = {}
        data = self.digests.data
        tokenizer: Path | None = None
        folders = {part: self.workspace.folder(f"data/{data[part]}") for part in data}
        again = self.options.redo == "prepare"
        with _made_again(list(folders.values())) if again else contextlib.nullcontext():
            if "pretrain" in data:
                folder = folders["pretrain"]
                reports["pretrain"] = prepare_pretrain(self.job, folder, self._say_or_stop)
                tokenizer = folder / "tokenizer.json"
            if "sft" in data:
                reports["sft"] = prepare_sft(self.job, folders["sft"], tokenizer, self._say_or_stop)
        for part in data:
            self._patiently(partial(self._keep_data, part))
        self._patiently(self._drop_redone)
        digest = self.digests.stages["prepare"]
        self._patiently(lambda: self.claim.finish_stage("prepare", digest, reports))
        self.say(Phase("prepare", time.monotonic() - started))
        self.say(StageState("prepare", "done"))

    def _keep_data(self, part: str) -> None:
        """Prepared data counts once the store has it: the next machine trains on the same bytes."""

        def say(done: int, total: int) -> None:
            what = f"upload {part} data"
            self._say_or_stop(PrepareProgress(what, done / 1e6, "MB", total=total / 1e6))

        self.workspace.keep_data(self.digests.data[part], say)

    def _fetch_ahead(self, stage: str) -> None:
        """Bring data and the newest checkpoint of `stage` to this machine; workers look again."""
        from pipeline.state.checkpoints.restore import newest_good

        started = time.monotonic()
        with contextlib.suppress(PionError):  # a worker meets it too, where it can be reported
            self.workspace.bring_data(self.digests.data[stage])
            newest_good(self.workspace, self.claim.head, stage, self.digests.stages[stage])
            self.say(Phase("fetched", time.monotonic() - started))

    def _train(self, training: list[str], workers: RayWorkers | None) -> None:
        if workers is None:
            outcome = self._train_here(training)
        else:
            outcome = self._follow(workers)
        if outcome == "stopped":
            raise self.stopping.error("every finished step is saved")
        self.claim.heartbeat.stop()
        self.claim = self._patiently(lambda: claim_again(self.run, self.owner, price=self.price))
        self.claim.heartbeat.start()

    def _train_here(self, training: list[str]) -> str:
        ahead = threading.Thread(target=self._fetch_ahead, args=(training[0],), daemon=True)
        if self.workspace.remote:
            ahead.start()  # while torch is imported
        import torch  # noqa: F401

        from pipeline.training.group import Group
        from pipeline.training.train import train_stages
        from pipeline.training.train_request import TrainRequest

        request = TrainRequest.of(
            self.job, self.digests, self.owner, training, gpus=gpu_count(), started=self.started
        )
        while ahead.is_alive() and not self.stopping.asked:
            ahead.join(0.1)
        self.claim.heartbeat.stop()
        return train_stages(request, Group(), self.say, lambda: self.stopping.asked)

    def _follow(self, workers: RayWorkers) -> str:
        """Show what the workers say until rank 0 has trained; raises what it reports."""
        import queue

        asked_at: float | None = None
        imported = connected = False
        # Without a deadline of its own a stop waits as long as the last save may take.
        patience = linger_seconds(self.job.checkpoint) + STOP_SECONDS
        while True:
            self.claim.check()  # also while no worker has claimed the run
            if self.stopping.asked and asked_at is None:
                asked_at = time.monotonic()
                workers.ask_to_stop()
            waited = time.monotonic() - asked_at if asked_at is not None else 0.0
            try:
                rank, message = workers.messages.get(timeout=0.2)
            except queue.Empty:
                connected = connected or bool(workers.connected)
                if asked_at is not None and not connected:
                    return "stopped"  # workers that are still starting have nothing to save
                gone = connected and not workers.connected
                late = self.stopping.deadline is None and waited > patience
                if asked_at is not None and (late or (gone and waited > GONE_SECONDS)):
                    raise self.stopping.error(
                        "the workers ended before they could save, so steps after the last "
                        "checkpoint are done again"
                    ) from None
                continue
            match message:
                case Trained():
                    if rank == 0:
                        return message.outcome
                case WorkerFailed():
                    raise error_from_json(message.error)
                case FitEnded():
                    raise PionError(
                        f"The training workers ended: {message.last_words}. What was committed is "
                        "safe; run the same command again to go on from there, or with "
                        "hardware.workers=0 to train without Ray. Their log is "
                        f"{workers.log}."
                    )
                case WorkerStarted():
                    if rank == 0:
                        seconds = time.monotonic() - workers.started
                        self.say(Phase("Ray and workers", seconds))
                case _:
                    self.say(message)
                    if isinstance(message, Step) and not imported:
                        # Evaluation follows in this process; its imports would cost seconds then.
                        imported = True
                        threading.Thread(target=_import_evaluation, daemon=True).start()

    def _stage_after_training(self, stage: str) -> None:
        self.stopping.check()
        self.say(StageState(stage, "started"))
        started = time.monotonic()
        work = finish_evaluate if stage == "evaluate" else finish_publish
        result = work(self.job, self.run, self.digests, self._say_or_stop, self._patiently)
        digest = self.digests.stages[stage]
        self._patiently(lambda: self.claim.finish_stage(stage, digest, result))
        self.say(Phase(stage, time.monotonic() - started))
        self.say(StageState(stage, "done"))

    def _verdict(self, error: StoreError) -> PionError:
        if self.work_done:
            safe = f"Everything committed before is safe in {self.run.store.url}."
            return verdict(error, Moment.WORK_DONE, safe)
        managed = self.owner.launch_id is not None
        return verdict(error, Moment.BEFORE_WORK, "Nothing was started.", managed=managed)


@contextlib.contextmanager
def _made_again(folders: list[Path]) -> Iterator[None]:
    """Put the prepared data in `folders` aside; it comes back if making it again fails."""
    aside = {folder: folder.with_name(f"{folder.name}.old") for folder in folders}
    for folder, old in aside.items():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
    try:
        yield
    except BaseException:
        for folder, old in aside.items():
            if old.exists():
                shutil.rmtree(folder, ignore_errors=True)
                old.rename(folder)
        raise
    for old in aside.values():
        shutil.rmtree(old, ignore_errors=True)


def _import_evaluation() -> None:
    import pion.evaluate
    import pion.model.decoder  # noqa: F401
