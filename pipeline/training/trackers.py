"""Metrics for TensorBoard and Weights & Biases, if the job asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pion.errors import BadInput
from pipeline.job import Job

_NOT_A_METRIC = {"step", "epoch", "stage", "rows"}


def check_trackers(job: Job) -> None:
    """Raise BadInput if a tracker that the job asks for is not installed, before any work."""
    for name, wanted in (("tensorboard", job.log.tensorboard), ("wandb", job.log.wandb)):
        if wanted:
            _load(name)


class Trackers:
    """Writes metrics rows of one stage to the trackers in `job.log` (default: none)."""

    def __init__(self, job: Job, stage: str) -> None:
        self._stage = stage
        self._board: Any = None
        self._wandb: Any = None
        if job.log.tensorboard:
            _load("tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(f"{job.log.tensorboard}/{job.name}")
        if job.log.wandb:
            # All attempts resume one W&B run: its id is the run's name.
            self._wandb = _load("wandb").init(
                project=job.log.wandb,
                id=job.name,
                name=job.name,
                resume="allow",
                config=job.model_dump(mode="json"),
            )

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Pass on the numbers of `rows`, each with its `step`."""
        for row in rows:
            numbers = {f"{self._stage}/{name}": value for name, value in _numbers(row).items()}
            if self._board is not None:
                for name, value in numbers.items():
                    self._board.add_scalar(name, value, row["step"])
            if self._wandb is not None:
                self._wandb.log(numbers | {f"{self._stage}/step": row["step"]})

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the metrics of a row. Those of each layer get the number of the layer."""
    numbers: dict[str, int | float] = {}
    for name, value in row.items():
        if name in _NOT_A_METRIC:
            continue
        if isinstance(value, int | float):
            numbers[name] = value
        elif isinstance(value, list):
            numbers |= {f"{name}/{layer}": number for layer, number in enumerate(value)}
    return numbers


def _load(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise BadInput(
            f"log.{name}: the package {name} is not installed. Nothing was started. "
            f"Install it with `uv sync --extra {name}`, or remove log.{name}."
        ) from None
