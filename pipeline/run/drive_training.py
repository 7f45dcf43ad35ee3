"""Train the training stages of a run, in workers of Ray or in this process."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import Interrupted, PionError
from pion.garbage_collection import importing
from pipeline.console.formats import counted
from pipeline.console.messages import (
    FitEnded,
    FromWorker,
    MachineNotice,
    Note,
    Phase,
    PrepareProgress,
    Say,
    Step,
    Trained,
    WorkerFailed,
    WorkerStarted,
)
from pipeline.job.hardware_section import Hardware
from pipeline.machine.gpus import gpu_count
from pipeline.run.inputs import Start
from pipeline.run.preflight import worker_count
from pipeline.state.claim import Claim
from pipeline.state.shared.folder import bring_data
from pipeline.state.stores.errors import error_from_json
from pipeline.training.saving import linger_seconds
from pipeline.training.train_request import Group, TrainRequest

if TYPE_CHECKING:
    from pipeline.training.context import TrainingContext
    from pipeline.workers.ray_workers import RayWorkers

# How long workers may take to save after they are asked to stop, if the store can be reached.
STOP_SECONDS = 30.0
# How long to wait after a worker has hung up. Messages of this or another worker may still arrive.
GONE_SECONDS = 2.0
# How long to wait for a worker's next message before checking for a stop.
LOOK_SECONDS = 0.2
# A start of Ray that takes longer is shown.
WORTH_SHOWING = 1.0
# How long a group whose size may change may be away before the user is told. A start takes less.
ABSENCE_SECONDS = 120.0


class RayNotStarted(PionError):
    """A Ray of our own ended before a worker reached the training loop."""

    def __init__(self, last_words: str, log: Path) -> None:
        super().__init__(
            f"Ray could not start its workers: {last_words}. Everything committed is safe. To "
            "resume from there, run the same command again once the machine has less to do. "
            f"The workers' log is {log}."
        )
        self.last_words = last_words


def start_workers(
    start: Start, stages: Sequence[str], at_most: dict[str, Any] | None, *, without_ray: bool
) -> RayWorkers | None:
    """Start workers of Ray, which train `stages` once the data is there; don't wait for them.

    Return None if this process will train, or if there is nothing to train. `at_most` is the record
    of the plan to try after a larger one has failed. `without_ray`: a Ray for one worker has failed
    to start, and this process trains.
    """
    from pipeline.workers.cluster_size import gpus_of_workers
    from pipeline.workers.ray_workers import RayWorkers

    count = worker_count(start.job)
    if not stages or count == 0 or without_ray:
        return None
    hardware = start.job.hardware
    gpus = min(count, gpus_of_workers(start.job))
    request = _request(start, stages, gpus, by_ray=True, at_most=at_most)
    workers = hardware.workers if isinstance(hardware.workers, tuple) else count
    return RayWorkers(request, workers)


def train_without(start: Start, failed: RayNotStarted) -> str:
    """Return that this process trains instead of one worker. Raises `failed` if the job has
    several workers, or Interrupted on a rented machine."""
    if worker_count(start.job) == 1:
        return (
            f"Ray did not start: {failed.last_words}. This process trains without Ray, as with "
            "hardware.workers=0"
        )
    raise failed if start.owner.launch_id is None else Interrupted(str(failed))


def training_here(start: Start, claim: Claim, stages: Sequence[str], say: Say) -> TrainingContext:
    """Return what `train_stages` needs to train `stages` in this process. The heartbeat of `claim`
    has ended then."""
    ahead = threading.Thread(target=fetch_ahead, args=(start, claim, stages[0], say), daemon=True)
    if start.workspace.remote:
        ahead.start()  # while torch is imported
    from pipeline.training.compute_plan import check_compiler
    from pipeline.training.context import TrainingContext

    request = _request(start, stages, gpu_count())
    context = TrainingContext(request, Group(), say, lambda: start.stopping.asked)
    context.import_torch()
    check_compiler(context)
    with context.watchdog.paused():  # a download may take hours
        while ahead.is_alive() and not start.stopping.asked:
            ahead.join(0.1)
    claim.heartbeat.stop()
    return context


def _request(start: Start, stages: Sequence[str], gpus: int, **rest: Any) -> TrainRequest:
    return TrainRequest.of(
        start.job,
        start.digests,
        start.owner,
        list(stages),
        started=start.at,
        price=start.price,
        gpus=gpus,
        **rest,
    )


def fetch_ahead(start: Start, claim: Claim, stage: str, say: Say) -> None:
    """Bring data and the newest checkpoint of `stage` to this machine; workers check both again."""
    from pipeline.state.checkpoints.restore import newest_good

    started, workspace = time.monotonic(), start.workspace
    with contextlib.suppress(PionError):  # a worker fails on it too and reports it
        bring_data(start.run, claim.head, stage)
        newest_good(workspace, claim.head, stage, start.digests.stages[stage])
        say(Phase("fetched", time.monotonic() - started))


class Absence:
    """Notices that no worker of a group whose size may change has trained for a long time."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._since: float | None = None
        self._said = False

    def look(self, connected: int, now: float) -> str | None:
        """Return what to say about it, once for each absence. `now` is in seconds, of any clock."""
        if connected:
            self._since, self._said = None, False
            return None
        self._since = now if self._since is None else self._since
        if self._said or now - self._since < ABSENCE_SECONDS:
            return None
        self._said = True
        workers = self._hardware.workers_in_words
        fewest = counted(self._hardware.min_workers or 1, "worker")
        return (
            f"hardware.workers {workers}: no worker has trained for {ABSENCE_SECONDS:.0f} s. "
            f"Everything committed is safe. Ray starts workers once it has room for {fewest}. "
            "`ray status` shows what it has. After a run was killed, Ray keeps its room for three "
            "minutes"
        )


class WorkersTraining:
    """The driver's side of training by workers: shows their messages, and passes on a stop."""

    def __init__(self, start: Start, claim: Claim, workers: RayWorkers, say: Say) -> None:
        self._start, self._claim, self._workers, self._say = start, claim, workers, say
        # A stop without a deadline waits as long as the last save may take.
        self._patience = linger_seconds(start.job.checkpoint) + STOP_SECONDS
        self._asked_at: float | None = None
        self._elastic = start.job.hardware.elastic
        self._absence = Absence(start.job.hardware)
        self._connected = self._connected_when_asked = self._heard = False
        self._importing: threading.Thread | None = None

    def follow(self, alive: Callable[[], None]) -> str:
        """Block until rank 0 has trained; return "done" or "stopped". Raises what it reports.

        While it waits, it calls `alive`.
        """
        while True:
            alive()
            self._claim.check()  # also while no worker has claimed the run
            if self._start.stopping.asked and self._asked_at is None:
                self._asked_at = time.monotonic()
                self._connected_when_asked = self._workers.lifeline.connected > 0
                self._workers.lifeline.ask_to_stop()
            self._show_start()
            try:
                rank, message = self._workers.messages.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if self._ended_in_silence():
                    return "stopped"
                missing = self._absence.look(self._workers.lifeline.connected, time.monotonic())
                if self._elastic and missing is not None:
                    self._say(Note(missing))
                continue
            outcome = self._hear(rank, message)
            if outcome is not None:
                # Transformers replaces itself in sys.modules. Another thread that imports it
                # meanwhile gets a module without classes.
                if outcome == "done" and self._importing is not None:
                    self._importing.join()
                return outcome

    def _show_start(self) -> None:
        """Show that Ray still starts, and how to train without Ray."""
        waited = time.monotonic() - self._workers.started
        if self._heard or self._workers.shared or waited < WORTH_SHOWING:
            return
        count = worker_count(self._start.job)
        advice = "hardware.workers=0 trains without Ray" if count == 1 else ""
        self._say(
            PrepareProgress("Ray starts its workers", waited, "s", stage="train", detail=advice)
        )

    def _ended_in_silence(self) -> bool:
        """Return whether a stop was asked for before any worker had something to save.

        Raises Interrupted, Stopped or Fenced if the workers ended, or take too long, before they
        have saved.
        """
        stopping, connected = self._start.stopping, self._workers.lifeline.connected
        self._connected = self._connected or bool(connected)
        if self._asked_at is None:
            return False
        if not self._connected:
            return True  # the workers are still starting
        waited = time.monotonic() - self._asked_at
        late = stopping.deadline is None and waited > self._patience
        if self._elastic and not (connected or self._connected_when_asked):
            if waited <= GONE_SECONDS:
                return False
            self._end_in_order()
            raise stopping.error(
                "no worker trained at that moment, so the next start resumes from the last commit"
            )
        if late or (not connected and waited > GONE_SECONDS):
            raise stopping.error(
                "the workers stopped before they could save, so steps after the last checkpoint "
                "will be repeated"
            )
        return False

    def _end_in_order(self) -> None:
        """Let Ray forget a group whose size may change, if there is time."""
        if self._elastic and self._start.stopping.deadline is None:
            self._workers.end_in_order()

    def _hear(self, rank: int, message: FromWorker | FitEnded) -> str | None:
        """Handle a message; return the outcome if rank 0 has trained."""
        match message:
            case Trained():
                if rank != 0:
                    return None
                self._end_in_order()
                return message.outcome
            case WorkerFailed():
                self._end_in_order()
                raise error_from_json(message.error)
            case FitEnded() if not (self._heard or self._workers.shared):
                raise RayNotStarted(message.last_words, self._workers.log)
            case FitEnded():
                raise PionError(
                    f"The training workers stopped: {message.last_words}. Everything committed "
                    "is safe. To resume from there, run the same command again, or with "
                    "hardware.workers=0 to train without Ray. The workers' log is "
                    f"{self._workers.log}."
                )
            case MachineNotice() if self._elastic:
                self._say(Note(f"{message.text}. The other workers will train on without it"))
            case MachineNotice():
                self._start.preemption_stop.noticed(message.text, message.seconds)
            case WorkerStarted():
                self._heard = True
                if rank == 0:
                    self._say(Phase("Ray and workers", time.monotonic() - self._workers.started))
            case _:
                self._say(message)
                if isinstance(message, Step) and self._importing is None:
                    self._importing = threading.Thread(target=self._import_ahead, daemon=True)
                    self._importing.start()
        return None

    def _import_ahead(self) -> None:
        """Import what evaluation and publishing need later in this process: it takes seconds."""
        with importing():
            import pion.evaluation.held_out  # noqa: F401
            import pion.model.decoder  # noqa: F401

            if self._start.job.publish is not None:
                from transformers import AutoModelForCausalLM  # noqa: F401
