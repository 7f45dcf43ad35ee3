"""The numbers of a measurement that `pion plan` and `pion replay` read from a result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pion.bench.results import Measures, Results

TRAIN, SAVE = "train/", "save/"

Numbers = TypeVar("Numbers")


@dataclass(frozen=True)
class TrainSpeed:
    """The speed of training a preset on one card.

    Attributes:
        flops_per_token: the arithmetic of a token, to tell whether the preset has changed since.
        mfu: the share of the peak FLOP/s that training reached.
    """

    model: str
    params: int
    flops_per_token: float
    seq_len: int
    dtype: str
    compiled: bool
    recompute: bool
    micro_batch: int
    tokens_per_second: float
    mfu: float


@dataclass(frozen=True)
class SaveSpeed:
    """The copy of a training state to page-locked memory, for which training stops."""

    bytes: int
    stall_seconds: float
    bytes_per_second: float


def train_speeds(results: Results) -> Iterator[TrainSpeed]:
    """Yield the measured speeds of training."""
    yield from _of(results, TRAIN, TrainSpeed)


def save_speeds(results: Results) -> Iterator[SaveSpeed]:
    """Yield the measured copies of a training state."""
    yield from _of(results, SAVE, SaveSpeed)


def _of(results: Results, begin: str, kind: type[Numbers]) -> Iterator[Numbers]:
    for row in results.rows:
        if row.name.startswith(begin) and row.verdict == "measured":
            found = _numbers(kind, row.measures)
            if found is not None:
                yield found


def _numbers(kind: Any, measures: Measures) -> Any:
    """Return the record of these measures; None if one is missing or makes no sense."""
    types = {"str": str, "bool": bool, "int": int, "float": (int, float)}
    found = {}
    for field in dataclasses.fields(kind):
        value = measures.get(field.name)
        if not isinstance(value, types[str(field.type)]):  # type: ignore[arg-type]
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (0 < value < math.inf):  # type: ignore[operator]
            return None
        found[field.name] = value
    return kind(**found)
