"""Train the stages of a run: claim it, train, go back after trouble, until done or stopped.

Ray workers and a process without Ray call the same function. Rank 0 owns the run's state, decides
what to restore, and tells the other ranks.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress

from pion.errors import PionError, PlanFailed, Trouble
from pipeline.console.messages import Say, Shown
from pipeline.job import Job
from pipeline.training.context import TrainingContext, phase
from pipeline.training.loop import train_stage
from pipeline.training.train_request import Group, TrainRequest


def train_stages(
    request: TrainRequest, group: Group, report: Say, should_stop: Callable[[], bool]
) -> str:
    """Advance the training stages; return "done", or "stopped" if somebody asked for a stop.

    Raises `Stopped` if a request in the store or the budget asks for the stop, and PionError if a
    person must decide. Nothing committed is lost then.
    """
    started = time.monotonic()
    import torch

    if group.rank > 0:
        report = _say_nothing
    report(phase("torch imported", started))
    torch.set_num_threads(_threads(request.load_job(), group))
    context = TrainingContext(request, group, report, should_stop)
    started = time.monotonic()
    if not group.from_rank_0(context.wait_for_prepare() if group.rank == 0 else None):
        return "stopped"
    report(phase("waited for data", started))
    try:
        while (outcome := _attempt(context)) == "again":
            gc.collect()  # frees the old trainer's memory for the next trainer
        return outcome
    finally:
        context.watchdog.close()


def _attempt(context: TrainingContext) -> str:
    """Claim the run, train, and return "done", "stopped", or "again" after trouble."""
    group = context.group
    claim = context.claim() if group.rank == 0 else None
    context.own(claim)
    done = again = False
    try:
        todo = group.from_rank_0(context.unfinished(claim.head) if claim else None)
        for stage in todo:
            done = train_stage(context, claim, stage)
            gc.collect()  # frees the trainer's memory for the next stage
            if not done:
                break
        done = done or not todo
        return "done" if done else "stopped"
    except PlanFailed as failed:
        if claim is None or group.world_size > 1:
            raise  # other ranks wait for this one: the driver starts all of them again
        context.use_smaller_plan(failed, claim)
        again = True
        return "again"
    except Trouble as trouble:  # on all ranks, at the same step
        refusal = group.from_rank_0(context.leave_out(stage, trouble, claim) if claim else None)
        if refusal is not None:
            raise PionError(refusal) from None
        again = True
        return "again"
    finally:
        if claim is not None and (done or again):
            claim.heartbeat.stop()  # the next claim is the driver's or this process's
        elif claim is not None:
            with suppress(PionError):
                claim.release()


def _say_nothing(message: Shown) -> None:
    """Do nothing: rank 0 reports for all."""


def _threads(job: Job, group: Group) -> int:
    return job.hardware.threads or max(1, (os.cpu_count() or 1) // group.world_size)
