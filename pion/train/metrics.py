"""Keep each step's numbers on the device until they are needed, and decide which steps are bad: a
loss or gradient norm that is not finite, or a loss that jumps."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pion.errors import Trouble
from pion.model.feedforward.experts import ENTROPY, LOAD
from pion.model.params_and_flops import TokenFlops
from pion.train import hardware
from pion.train.feed import RowRange
from pion.train.settings import ComputePlan

# What metrics call a report, by its name in `stats`, if they call it by another name.
COLUMNS = {LOAD: "expert_load", ENTROPY: "router_entropy"}
# A loss is compared with the median of this many good steps before it.
RECENT_STEPS = 64
# After fewer good steps than this, no loss counts as a spike.
ENOUGH_STEPS = 16


@dataclass(frozen=True)
class StepRecord:
    """One finished step; the tensors are still on the device.

    `stats` has what routers, recipes and gates report; see the parts in pion/model/. It is empty
    for other models.
    """

    step: int
    rows: RowRange
    lr: float
    loss: Tensor
    grad_norm: Tensor
    targets: Tensor
    tokens: int  # that count for the speed, of all ranks
    seq_len: int  # of its rows
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    measures: Mapping[str, Tensor] = field(default_factory=dict)  # scalars, of the way of learning


class StepJudge:
    """Judges steps in their order. `recent` has the losses of the last 64 good steps.

    A loss is a spike if it exceeds `max_spike` times their median. None: no loss is a spike.
    """

    def __init__(self, max_spike: float | None) -> None:
        self._max_spike = max_spike
        self.recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def recall(self, losses: Iterable[float]) -> None:
        """Continue from a state with these recent losses."""
        self.recent = deque(losses, maxlen=RECENT_STEPS)

    def what_is_wrong(self, loss: float, grad_norm: float) -> str | None:
        """Return why a step is bad, in words; None if it is not. The gradient norm is that before
        clipping."""
        numbers = (("loss", loss), ("gradient norm", grad_norm))
        if broken := [f"{name} {v:g}" for name, v in numbers if not math.isfinite(v)]:
            return " and ".join(broken)
        if self._max_spike is None or len(self.recent) < ENOUGH_STEPS:
            return None
        median = statistics.median(self.recent)
        if loss <= self._max_spike * median:
            return None
        return (
            f"loss {loss:.4g}, above {self._max_spike:g} × the median {median:.4g} of the last "
            f"{len(self.recent)} steps"
        )


class StepMetrics:
    """Collects steps, judges them, and returns them with the throughput of their interval.

    An interval begins with the first step after the last `drain`, so the caller's work in between
    (an evaluation, a checkpoint) is not counted.

    Steps are judged (StepJudge) in order and by numbers that all ranks share, so it does not
    matter when a rank asks.

    `flops` returns the FLOPs of training on a token of a row of so many tokens.
    """

    def __init__(
        self,
        flops: Callable[[int], TokenFlops],
        plan: ComputePlan,
        clock: Callable[[], float],
        max_spike: float | None = None,
    ) -> None:
        self._flops, self._plan, self._clock = flops, plan, clock
        self._judge = StepJudge(max_spike)
        self._device = torch.device(plan.device)
        self._on_device: list[StepRecord] = []
        self._good: list[dict[str, Any]] = []
        self._wrong: tuple[StepRecord, str] | None = None
        self._interval_start: float | None = None
        self._interval_steps: list[tuple[int, int]] = []  # tokens, and the length of rows

    def begin_step(self) -> None:
        """Start the interval's clock if this is the first step of the interval."""
        if self._interval_start is None:
            self._interval_start = self._clock()

    def add(self, record: StepRecord) -> None:
        """Keep a finished step. This does not wait for the device."""
        self._on_device.append(record)
        self._interval_steps.append((record.tokens, record.seq_len))

    def restart(self, recent_losses: Iterable[float]) -> None:
        """Drop all steps: the trainer has returned to a state with these recent losses."""
        self._on_device, self._wrong = [], None
        self._judge.recall(recent_losses)
        self._begin_interval()

    def recent_losses(self) -> list[float]:
        """Return the losses of the last good steps, at most 64, to judge the next steps."""
        self._judge_new()
        return list(self._judge.recent)

    def trouble(self) -> Trouble | None:
        """Return the first wrong step since the last `restart`, or None.

        The error has the metrics of the good steps that `drain` has not returned yet.
        """
        self._judge_new()
        if self._wrong is None:
            return None
        record, reason = self._wrong
        return Trouble(record.step, record.rows, reason, self._good_steps())

    def drain(self) -> list[dict[str, Any]]:
        """Return the steps since the last call; see `Trainer.drain_metrics`."""
        if (trouble := self.trouble()) is not None:
            raise trouble
        steps = self._good_steps()
        self._begin_interval()
        return steps

    def _begin_interval(self) -> None:
        self._good, self._interval_start, self._interval_steps = [], None, []

    def _good_steps(self) -> list[dict[str, Any]]:
        if not self._good or self._interval_start is None:
            return []
        interval = self._throughput(max(self._clock() - self._interval_start, 1e-9))
        return [{**step, **interval} for step in self._good]

    def _throughput(self, seconds: float) -> dict[str, float]:
        tokens = sum(tokens for tokens, _ in self._interval_steps)
        seq_len = self._interval_steps[-1][1]
        flops = tokens * self._flops(seq_len).total
        reached = flops / seconds / self._plan.world_size
        return {
            "tokens_per_second": tokens / seconds,
            "mfu": reached / hardware.peak_flops(self._device, self._plan.dtype, reached),
            "memory": hardware.memory_in_use(self._device),
        }

    def _judge_new(self) -> None:
        """Copy the new steps' numbers from the device, in one transfer, and judge them."""
        records, self._on_device = self._on_device, []
        if not records or self._wrong is not None:
            return
        numbers: list[list[float]] = torch.stack([_numbers(record) for record in records]).tolist()
        for record, (loss, grad_norm, targets, *reported) in zip(records, numbers):
            if (reason := self._judge.what_is_wrong(loss, grad_norm)) is not None:
                self._wrong = (record, reason)
                return
            if targets:  # without targets the loss is always 0
                self._judge.recent.append(loss)
            self._good.append(
                {
                    "step": record.step,
                    "loss": loss,
                    "lr": record.lr,
                    "grad_norm": grad_norm,
                    "tokens": int(targets),
                    "rows": list(record.rows),
                    **dict(zip(record.measures, reported)),
                    **_reported(record, reported[len(record.measures) :]),
                }
            )


def _numbers(record: StepRecord) -> Tensor:
    """Return all numbers of a step in one tensor, the reports at its end."""
    reported = [
        # Of each layer's experts, the load of the busiest one as a multiple of the mean load.
        value.amax(dim=1) * value.shape[1] if name == LOAD else value
        for name, value in record.stats.items()
    ]
    scalars = record.loss, record.grad_norm, record.targets, *record.measures.values()
    return torch.cat([torch.stack(scalars), *reported])


def _reported(record: StepRecord, numbers: list[float]) -> dict[str, list[float]]:
    columns = {}
    for name, value in record.stats.items():
        columns[COLUMNS.get(name, name)], numbers = numbers[: len(value)], numbers[len(value) :]
    return columns
