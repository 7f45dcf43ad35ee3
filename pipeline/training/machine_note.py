"""Record which machine an attempt trains on, and how: for the lineage and the receipt of a hop."""

from __future__ import annotations

import platform
import socket
from typing import TYPE_CHECKING, Any

from pipeline.console.formats import printable
from pipeline.state.metrics import EventLog
from pipeline.training.receipt import NOT_IDENTICAL, hop_receipt

if TYPE_CHECKING:
    from pion.train.step_down import StepDown
    from pion.train.trainer import Trainer
    from pipeline.training.context import TrainingContext


def record_machine(context: TrainingContext, epoch: int, stage: str, trainer: Trainer) -> list[str]:
    """Append the "training" event of the attempt that begins under `epoch`, and return its receipt.

    The receipt is empty if machine and plan are the same as in the previous attempt. It is also
    kept as an event.
    """
    import torch

    from pion.train.hardware import device_name
    from pion.train.schedule import lr_at

    run, job, plan, settings = context.run, context.job, trainer.plan, trainer.settings
    now: dict[str, Any] = {
        "stage": stage,
        "from_step": trainer.step,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "device": device_name(trainer.device),
        "workers": plan.world_size,
        "micro_batch": plan.micro_batch,
        "grad_accum": trainer.grad_accum,
        "dtype": plan.dtype,
        "recompute": plan.recompute,
        "compile": plan.compile,
        "torch": str(torch.__version__),
        "seq_len": job.seq_len(stage),
        "global_batch": settings.global_batch,
        # The schedule's rate for the last finished step, to compare with the rate that was used.
        "lr": settings.lr * lr_at(settings, trainer.step - 1) if trainer.step else None,
        "next_row": trainer.next_row,
    }
    if trainer.device.type == "cpu":  # there, the number of threads decides how sums are rounded
        now["threads"] = plan.threads
    receipt = context.patiently(lambda: hop_receipt(run, epoch, now))
    events = EventLog(run.store, run.name, epoch)
    events.append("training", **now)
    if receipt:
        events.append("hop", stage=stage, receipt=receipt)
    context.patiently(events.flush)
    return receipt


def record_step_down(
    context: TrainingContext, epoch: int, stage: str, trainer: Trainer, change: StepDown
) -> list[str]:
    """Append the receipt of a smaller plan as a "hop" event, and return the receipt.

    The event has the new plan. So the receipt of the next attempt compares with that plan.
    """
    plan = trainer.plan
    receipt = [
        f"{stage} after step {trainer.step:,}: {printable(change.why)}. This step begins again, "
        f"with {change.changes}",
        NOT_IDENTICAL,
    ]
    now = {
        "micro_batch": plan.micro_batch,
        "grad_accum": trainer.grad_accum,
        "recompute": plan.recompute,
        "compile": plan.compile,
    }
    events = EventLog(context.run.store, context.run.name, epoch)
    events.append("hop", stage=stage, receipt=receipt, plan=now)
    context.patiently(events.flush)
    return receipt
