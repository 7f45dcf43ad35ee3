"""What all stages and attempts of one training process share: the run, the stop, the watchdog."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from pion.errors import BadInput, CardFailed, Interrupted, PionError, PlanFailed, Stopped, Trouble
from pion.garbage_collection import importing
from pion.train.allocator import let_segments_grow
from pion.train.settings import AS_MANY_AS_FIT
from pion.usable_cores_and_memory import usable_cores
from pipeline.console.messages import Note, Phase, Say
from pipeline.cost.budget import over_budget
from pipeline.machine.gpus import gpu_count
from pipeline.state.checkpoints.checkpointer import Checkpointer
from pipeline.state.checkpoints.retention import sweep, sweep_abandoned
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.state.checkpoints.uploader import Uploader
from pipeline.state.claim import Claim, claim_again
from pipeline.state.head import Head
from pipeline.state.kept_inputs import use_kept_inputs
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError, open_store
from pipeline.state.stores.clock import Clock
from pipeline.state.stores.retry import Patience
from pipeline.state.workspace import Workspace
from pipeline.training.rewind import plan_rewind
from pipeline.training.saving import linger_seconds
from pipeline.training.train_request import Group, TrainRequest
from pipeline.training.watchdog import Watchdog

if TYPE_CHECKING:
    from pion.train.smaller_plan import StepDown

MAX_ATTEMPTS = 5
POLL_SECONDS, REMOTE_POLL_SECONDS = 0.1, 2.0
HANG_EXIT = 70

Result = TypeVar("Result")


class TrainingContext:
    """What all stages and attempts of one training process share.

    `workspace` and `clock` replace the request's store and this machine's clock.
    """

    # Saves the checkpoints of a stage.
    checkpointer = Checkpointer

    def __init__(
        self,
        request: TrainRequest,
        group: Group,
        report: Say,
        should_stop: Callable[[], bool],
        workspace: Workspace | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.request = request
        self.group = group
        # Rank 0 reports for all.
        self.report: Say = report if group.rank == 0 else lambda message: None
        self.job = request.load_job()
        self.workspace = workspace or Workspace(open_store(request.store), self.job.name)
        self.run = RunState(self.workspace.store, self.job.name, clock)
        use_kept_inputs(self.job, run=self.run)
        self.first_step_seen = False
        # The record of the plan to try after a larger one has failed on this machine.
        self.at_most = request.at_most
        # Whether the compiler was tried, and how it failed, until this is recorded.
        self.compiler_checked = False
        self.compiler_changes: list[StepDown] = []
        limit = self.job.hardware.hang_seconds
        self.watchdog = (
            Watchdog(self._end_hang, factor=0.0, at_least=limit)
            if limit is not None
            else Watchdog(self._end_hang)
        )
        self.watchdog.start()
        self._asked = should_stop
        # Whether the stop is for a group of another size, which continues the run.
        self.is_resized: Callable[[], bool] = lambda: False
        # On rank 0 while it owns the run. Its stop requests and its spending are obeyed.
        self.owned: Claim | None = None
        self._patience = Patience(
            linger_seconds(self.job.checkpoint),
            lambda text: self.report(Note(text)),
            self._sleep,
        )

    def import_torch(self) -> None:
        """Import torch, which takes seconds, and let it use this process's share of the cores."""
        started = time.monotonic()
        let_segments_grow()
        with importing():
            import torch

            # The first step needs this, 3 s of a core that may be free while `prepare` works.
            import_module("torch._dynamo")

        self.report(phase("torch imported", started))
        if self.request.gpus:
            self._require_cuda()
        cores = max(1, usable_cores() // self.group.world_size)
        torch.set_num_threads(self.job.hardware.threads or cores)

    def _require_cuda(self) -> None:
        """Raise CardFailed if the GPUs that the driver process counted are gone, and BadInput if
        torch can't use them: training must not continue on the CPU."""
        import torch

        if torch.cuda.is_available():
            return
        from pion.train.card import why_no_cuda

        if gpu_count() == 0:
            raise CardFailed(
                f"this machine had {self.request.gpus} GPU(s) when the run began, and the driver "
                "no longer lists any. Everything committed is safe. Look at `nvidia-smi` and "
                "`dmesg | grep -i xid`. To resume, run the same command again, on another machine "
                "or after a restart of this machine"
            )
        raise BadInput(
            f"this machine has a GPU, but torch {torch.__version__} can't use it: "
            f"{why_no_cuda()}. Nothing was changed, and everything committed is safe. Install a "
            "torch for this driver (`nvidia-smi` shows its version), or set CUDA_VISIBLE_DEVICES= "
            "to train on the CPU"
        )

    def should_stop(self) -> bool:
        """Return whether the driver, a request or the budget asks this rank to stop."""
        return self._asked() or self.stop_reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Why the run must stop and stay stopped, by a request or the budget; None if it may
        continue."""
        claim = self.owned
        if claim is None:
            return None
        if (request := claim.heartbeat.stop_request) is not None:
            return f"Stopped by request ({request}). Every finished step is saved."
        return over_budget(self.job.budget, claim.spent)

    def stopped(self, interrupted: str) -> PionError:
        """Return the error of a stop: by a request or the budget, or else with these words."""
        reason = self.stop_reason
        return Interrupted(interrupted) if reason is None else Stopped(reason)

    def patiently(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns; while the store is down, retry for `checkpoint.linger`.

        `work` must be idempotent. Raises Interrupted or Stopped if asked to stop meanwhile.
        """
        with self.watchdog.paused():
            return self._patience(work)

    def fetch(self, work: Callable[[], Result]) -> Result:
        """Return what `work` downloads from a store, once every rank has finished its download.

        Another machine's download may take much longer than this one's.
        """

        def bring() -> Result:
            brought = work()
            self.group.wait_for_all()
            return brought

        return self.patiently(bring)

    def wait_for_prepare(self) -> bool:
        """Return True once the prepared data is committed, or False if asked to stop first."""
        wanted = self.request.digests["prepare"]
        with self.watchdog.paused():  # preparing data may take hours
            while not self._asked():
                with suppress(StoreError):  # the driver gets the same error, and decides
                    head = self.run.read()
                    done = head.stages.get("prepare") if head else None
                    if done is not None and done.digest == wanted:
                        return True
                self.run.clock.sleep(REMOTE_POLL_SECONDS if self.workspace.remote else POLL_SECONDS)
        return False

    def claim(self) -> Claim:
        """Claim the run under a new epoch; give up if attempts keep failing without a commit."""
        owner, price = Owner(**self.request.owner), self.request.price
        claim = self.patiently(lambda: claim_again(self.run, owner, price=price))
        self.patiently(lambda: sweep_abandoned(claim))
        self.patiently(lambda: sweep(claim))
        if claim.head.failed_attempts >= MAX_ATTEMPTS:
            claim.release(forget_attempts=True)
            raise PionError(
                f"{MAX_ATTEMPTS} attempts in a row failed before anything was committed. "
                "Everything committed earlier is safe. Fix the cause (the last error is above, or "
                "in the machine's log if memory ran out), then run the same command again."
            )
        self.keep_alive(claim)
        return claim

    def keep_alive(self, claim: Claim) -> None:
        """Show from now on that the owner of the run is alive."""
        claim.heartbeat.start()

    def uploader(self) -> Uploader:
        """Return the process that uploads the checkpoints of a stage."""
        return Uploader(Snapshot(), self.run.store.url, patience=self.job.checkpoint.max_undurable)

    def free_memory(self) -> None:
        """Free what nobody refers to any more, such as a trainer with its weights."""
        gc.collect()

    def use_smaller_plan(self, failed: PlanFailed, claim: Claim) -> None:
        """Train by the smaller plan from now on; the attempt does not count as a failed one."""
        self.at_most = failed.plan
        self.patiently(claim.forget_attempts)
        self.report(Note(smaller_plan_note(failed)))

    def unfinished(self, head: Head) -> list[str]:
        """Return the stages that `head` does not record as finished."""
        return [
            stage
            for stage in self.request.stages
            if stage not in head.stages or head.stages[stage].digest != self.request.digests[stage]
        ]

    def leave_out(self, stage: str, trouble: Trouble, claim: Claim) -> str | None:
        """Record that the offending rows are left out from now on, and return None; or return why
        the run has to give up."""
        digest, limit = self.request.digests[stage], self.job.checkpoint.max_rewinds
        try:
            rows = plan_rewind(claim.head, stage, digest, trouble, limit, self.run.clock.now())
        except PionError as error:
            return str(error)
        self.patiently(partial(claim.commit, lambda head: head.with_skipped(stage, rows)))
        events = EventLog(self.run.store, self.run.name, claim.epoch, self.run.clock.now)
        events.append(
            "rewound", stage=stage, step=rows.step, rows=[rows.first, rows.stop], why=rows.why
        )
        self.patiently(events.flush)
        self.report(
            Note(
                f"{stage} step {rows.step:,} gave {rows.why}. Rolling back to the last checkpoint "
                f"and skipping rows {rows.first:,} to {rows.stop - 1:,}"
            )
        )
        return None

    def _sleep(self, seconds: float) -> None:
        """Sleep until `seconds` are over. Raises Interrupted or Stopped if asked to stop."""
        end = time.monotonic() + seconds
        while not self.should_stop():
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, POLL_SECONDS))
        raise self.stopped(
            "Interrupted while the store was down. Everything committed earlier is safe. Run the "
            "same command again to resume."
        )

    def _end_hang(self, text: str) -> None:
        """End this process. Ray restarts the workers; without Ray, exit code 75 asks for a restart.

        Only rank 0 does so. It soon waits for any rank that hangs, and the others can't tell a
        hang from rank 0 waiting for its store.
        """
        if self.group.rank > 0:
            return
        note = Note(f"training hangs. {text}", last=not self.request.by_ray)
        saying = threading.Thread(target=self.report, args=(note,), daemon=True)
        saying.start()
        saying.join(1.0)  # the connection to the driver may hang too
        os._exit(HANG_EXIT if self.request.by_ray else 75)


def smaller_plan_note(failed: PlanFailed) -> str:
    """Return what to say when training starts again by a smaller plan."""
    plan = failed.plan
    words = ["the model divided among the workers"] if plan.get("sharded") else []
    if plan["micro_batch"] < AS_MANY_AS_FIT:
        words.append(f"micro_batch {plan['micro_batch']}")
    words += [word for word in ("recompute", "compile") if plan[word]]
    # A record leaves out a field that is true.
    without = ("combo_kernels", "flex_attention") if plan["compile"] else ("flex_attention",)
    words += [f"no {name.replace('_', ' ')}" for name in without if not plan.get(name, True)]
    return f"{failed.why}. Starting again from the last checkpoint with {', '.join(words)}"


def phase(name: str, started: float) -> Phase:
    """Return the message that a part of the start-up, begun at `started` (monotonic), is over."""
    return Phase(name, time.monotonic() - started)
