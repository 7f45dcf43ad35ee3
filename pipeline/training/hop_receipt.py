"""The receipt of a hop: what changed with the machine, and proof that the run did not change.

An attempt records its machine and its plan as a "training" event when it begins. The receipt
compares two such events. Of their fields it uses: stage, from_step, host, device, workers,
micro_batch, grad_accum, dtype, residual, recompute, compile, combo_kernels, flex_attention,
sharded, torch, threads (only on a CPU), python, seq_len, global_batch, lr (the schedule's rate for
step `from_step`, the last finished step) and next_row (the first row that this attempt trains on).
"""

from __future__ import annotations

import math
import platform
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.console.formats import printable
from pipeline.state.rows.metrics import EventLog
from pipeline.state.rows.row_types import event_row, metrics_row
from pipeline.state.rows.segments import Segment, lines_of, segments, without_parts
from pipeline.state.run_state import RunState
from pipeline.training.compute_plan import COMPILED

if TYPE_CHECKING:
    from pion.train.smaller_plan import StepDown
    from pion.train.trainer import Trainer
    from pipeline.training.context import TrainingContext


Row = Mapping[str, Any]

ALARM = "ALARM: "
LR_TOLERANCE = 1e-12
SWITCHES = ("recompute", *COMPILED, "sharded")
# If one of these changes, sums are rounded in another way. SUMS are in a receipt's first lines, and
# each change of ROUNDING has a line.
SUMS = ("workers", "micro_batch", "grad_accum", "device")
ROUNDING = ("dtype", "residual", *SWITCHES, "torch", "threads")
# What a receipt needs to know about an attempt.
COMPARED = {"from_step", "host", "device", "workers", "micro_batch", "grad_accum", "seq_len"} | {
    "global_batch"
}


def hop_receipt(run: RunState, epoch: int, now: Row) -> list[str]:
    """Return the receipt of the attempt `now` that begins under `epoch`; empty if nothing changed.

    Compares with the previous attempt and with the metrics of the last kept step. Reads only a few
    objects, because the first step waits for it.
    """
    before = _attempt_before(run, epoch)
    if before is None or not plan_changed(before, now):
        return []
    continues = before["stage"] == now["stage"] and now["from_step"] > 0
    last = _metrics_of_step(run, now["stage"], now["from_step"]) if continues else None
    return receipt(before, now, last)


def plan_changed(before: Row, now: Row) -> bool:
    """Return whether the machine changed, or how it computes."""
    return bool(_differ(before, now, ("host", "python", *SUMS, *ROUNDING)))


def _differ(before: Row, now: Row, names: Sequence[str]) -> list[str]:
    """Return which of the names have other values, as far as both attempts have recorded them."""
    return [name for name in names if {**now, **before}.get(name) != {**before, **now}.get(name)]


def _not_identical(stage: str) -> str:
    same = "the weights equal those of an unbroken run only up to rounding"
    other = "some answers may differ from those of an unbroken run, and so may the weights"
    return f"not bit-identical: from this step on, {other if stage == 'reinforce' else same}"


def receipt(before: Row, now: Row, last: Row | None) -> list[str]:
    """Return the lines to print and keep about a hop, in which `plan_changed`. A line that starts
    with ALARM names an error.

    Args:
        before: the previous attempt.
        now: the attempt that begins.
        last: the metrics of step `from_step` of `now` (`lr`, `rows`); None if there are none.
    """
    same_stage = before["stage"] == now["stage"]
    # A stage that starts over (--redo) may have another batch: only a kept step binds it.
    continues = same_stage and now["from_step"] > 0
    lines = [_machines(before, now), *_batch(before, now, continues)]
    lines += [
        f"{name.replace('_', ' ')} {_in_words(before[name])} → {_in_words(now[name])}"
        for name in _differ(before, now, ("python", *ROUNDING))
    ]
    if continues and _differ(before, now, (*SUMS, *ROUNDING)):
        lines.append(_not_identical(now["stage"]))
    if same_stage:
        lines += [_learning_rate(before, now, last), _first_row(now, last)]
    return [printable(line) for line in lines]


def _in_words(value: Any) -> Any:
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _machines(before: Row, now: Row) -> str:
    old, new = (f"{row['workers']} × {row['device']} on {row['host']}" for row in (before, now))
    return f"same machine: {new}" if old == new else f"hop: {old} → {new}"


def _batch(before: Row, now: Row, continues: bool) -> list[str]:
    """Return how the workers share a step, and, if the stage `continues`, whether the step is as
    large as before."""
    old, new = (
        f"{row['micro_batch']}×{row['grad_accum']}×{row['workers']}" for row in (before, now)
    )
    shape = f"{new} as before" if old == new else f"{old} → {new}"
    old_tokens, tokens = (row["global_batch"] * row["seq_len"] for row in (before, now))
    computed = now["micro_batch"] * now["grad_accum"] * now["workers"]
    lines = [f"micro_batch × grad_accum × workers: {shape}, {tokens:,} tokens per step"]
    if continues and tokens != old_tokens:
        lines.append(
            f"{ALARM}{tokens:,} tokens per step instead of {old_tokens:,}: this is the batch of "
            f"another run. {_STOP}"
        )
    elif continues:
        lines[0] += " as before"
    if computed < now["global_batch"]:
        lines.append(
            f"{ALARM}{new} computes only {computed:,} of the {now['global_batch']:,} sequences of "
            f"a step. {_STOP}"
        )
    return lines


def _learning_rate(before: Row, now: Row, last: Row | None) -> str:
    """Return whether the schedule gives the rate at which the last kept step was trained."""
    step, rate = now["from_step"], now.get("lr")
    if step == 0 or rate is None:
        return "learning rate: from the start of the schedule, because this stage has no saved step"
    # A fork may continue under another schedule than the one of its last step.
    known = before if before["from_step"] == step else last
    if known is None or known.get("lr") is None:
        return f"learning rate {rate:.6g}: can't be compared, because step {step:,} has no metrics"
    if not math.isclose(rate, known["lr"], rel_tol=LR_TOLERANCE):
        return (
            f"{ALARM}learning rate {rate!r} at step {step:,}, but {known['lr']!r} before: the "
            f"schedule has changed. {_STOP}"
        )
    return f"learning rate {rate:.6g} as before"


def _first_row(now: Row, last: Row | None) -> str:
    """Return whether training continues with the row after the last kept row."""
    first, step = now["next_row"], now["from_step"]
    if step == 0:
        expected = 0
    elif last is None:
        return f"first row {first:,}: can't be compared, because step {step:,} has no metrics"
    else:
        expected = last["rows"][1]
    if first != expected:
        return (
            f"{ALARM}first row {first:,}, but the next row should be {expected:,}: rows would "
            f"be {'repeated' if first < expected else 'skipped'}. {_STOP}"
        )
    if step == 0:
        return "first row 0, because this stage has no saved step"
    return f"first row {first:,} = last + 1"


_STOP = "Stop this run (Ctrl-C); everything committed is safe."


# ---------------------------------------------------------------- reading


def _attempt_before(run: RunState, epoch: int) -> Row | None:
    """Return the newest "training" event of an epoch before `epoch` that can be compared, with the
    plan that the attempt ended with."""
    plan: dict[str, Any] = {}
    for segment in _segments_backwards(run, "events/"):
        if segment.epoch < epoch:
            for row in _rows_backwards(run, segment.key, event_row):
                if row["event"] == "hop":
                    plan = {**row.get("plan", {}), **plan}  # newer plans count
                if row["event"] == "training" and row.keys() >= COMPARED:
                    return {**row, **plan}
    return None


def _metrics_of_step(run: RunState, stage: str, step: int) -> Row | None:
    """Return the metrics of that step's training, from the newest epoch that trained it."""
    before_step: set[int] = set()  # epochs that only reached an earlier step
    for segment in _segments_backwards(run, f"metrics/{stage}/"):
        if segment.epoch in before_step:
            continue
        for row in _rows_backwards(run, segment.key, metrics_row):
            if row["step"] == step and "rows" in row:
                return row
            if row["step"] < step:
                before_step.add(segment.epoch)
                break
    return None


def _segments_backwards(run: RunState, folder: str) -> Iterator[Segment]:
    """Yield the files of a log, newest first."""
    log = run.key(folder)
    return reversed(without_parts(segments(run.store.list(log), log)))


def _rows_backwards(run: RunState, key: str, parse: Callable[[bytes], Row | None]) -> Iterator[Row]:
    """Yield the rows of a segment, newest first. Leave out rows that can't be read."""
    parsed = map(parse, reversed(lines_of(run.store, key) or []))
    return (row for row in parsed if row is not None)


def record_machine(
    context: TrainingContext,
    epoch: int,
    stage: str,
    trainer: Trainer,
    found: Sequence[StepDown] = (),
) -> list[str]:
    """Append the "training" event of the attempt that begins under `epoch`, and return its receipt.

    The receipt is empty if machine and plan are the same as in the previous attempt. It is also
    kept as an event. `found` are the changes of a compiler that failed before training: an event
    keeps each, and they have been reported already.
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
        **{name: getattr(plan, name) for name in ("dtype", "residual", *SWITCHES)},
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
    for change in found:
        words = f"before {stage}: {printable(change.why)}. Training uses {change.changes}"
        events.append("hop", stage=stage, receipt=[words])
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
        _not_identical(stage),
    ]
    now = {
        "micro_batch": plan.micro_batch,
        "grad_accum": trainer.grad_accum,
        **{name: getattr(plan, name) for name in SWITCHES},
    }
    events = EventLog(context.run.store, context.run.name, epoch)
    events.append("hop", stage=stage, receipt=receipt, plan=now)
    context.patiently(events.flush)
    return receipt
