"""What each step measured, kept on the device until somebody asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pion.config import ModelConfig
from pion.errors import PionError
from pion.train import hardware
from pion.train.feed import RowRange
from pion.train.settings import Plan


@dataclass(frozen=True)
class StepRecord:
    """One finished step; the scalars are still on the device."""

    step: int
    rows: RowRange
    lr: float
    loss: Tensor
    grad_norm: Tensor
    targets: Tensor
    global_batch: int
    seq_len: int  # of its rows


class StepMetrics:
    """Collects steps, and hands them out with the throughput of the interval they took.

    An interval begins with the first step after the last `drain`, so that what the caller does in
    between (an evaluation, a checkpoint) isn't counted.
    """

    def __init__(self, config: ModelConfig, plan: Plan, clock: Callable[[], float]) -> None:
        self._config, self._plan, self._clock = config, plan, clock
        self._device = torch.device(plan.device)
        self._records: list[StepRecord] = []
        self._interval_start: float | None = None

    def begin_step(self) -> None:
        if self._interval_start is None:
            self._interval_start = self._clock()

    def add(self, record: StepRecord) -> None:
        self._records.append(record)

    def forget(self) -> None:
        """Drop what was collected: the trainer went back to another state."""
        self._records, self._interval_start = [], None

    def check_finite(self) -> None:
        """Raise PionError if a step since the last `drain` gave a loss or gradient that isn't."""
        self._scalars()

    def drain(self) -> list[dict[str, Any]]:
        """The steps since the last call; see `Trainer.drain_metrics`."""
        scalars = self._scalars()
        if not scalars or self._interval_start is None:
            return []
        seconds = max(self._clock() - self._interval_start, 1e-9)
        interval = self._throughput(seconds)
        records = self._records
        self.forget()
        return [
            {
                "step": record.step,
                "loss": loss,
                "lr": record.lr,
                "grad_norm": grad_norm,
                "tokens": int(targets),
                "rows": list(record.rows),
                **interval,
            }
            for record, (loss, grad_norm, targets) in zip(records, scalars)
        ]

    def _throughput(self, seconds: float) -> dict[str, float]:
        tokens = sum(record.global_batch * record.seq_len for record in self._records)
        flops = tokens * hardware.flops_per_token(self._config, self._records[-1].seq_len)
        peak = hardware.peak_flops(self._device, self._plan.dtype) * self._plan.world_size
        return {
            "tokens_per_second": tokens / seconds,
            "mfu": flops / seconds / peak,
            "memory": hardware.memory_in_use(self._device),
        }

    def _scalars(self) -> list[list[float]]:
        """(loss, grad_norm, targets) of each step, in one transfer from the device."""
        if not self._records:
            return []
        scalars: list[list[float]] = torch.stack(
            [torch.stack((r.loss, r.grad_norm, r.targets)) for r in self._records]
        ).tolist()
        for record, (loss, grad_norm, _) in zip(self._records, scalars):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                first, stop = record.rows
                raise PionError(
                    f"step {record.step} (rows {first} to {stop - 1}) gave loss {loss:g} and "
                    f"gradient norm {grad_norm:g}; the weights since then are unusable and have "
                    "not been saved. The last checkpoint is from before. Lower lr or clip, or "
                    "look at those rows, and run again"
                )
        return scalars
