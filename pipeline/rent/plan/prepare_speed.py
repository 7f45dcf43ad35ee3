"""How fast text was prepared in earlier runs of a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pion.errors import PionError
from pipeline.job import Job
from pipeline.machine.time_limit import within
from pipeline.rent.plan.speeds import RUNS, SECONDS
from pipeline.state.find_run import runs_in
from pipeline.state.stores import open_store


@dataclass(frozen=True)
class PrepareSpeed:
    """Megabytes of text (10^6 bytes) that were tokenized per second in `run`."""

    run: str
    mb_per_second: float


def prepare_speed(job: Job) -> PrepareSpeed | None:
    """Return the speed of the newest run in the job's store that says it; None if none does.

    Of several sources, the slowest counts. The time to download text and to train a tokenizer is
    not in it. Return None, too, if the store can't be read in time.
    """
    try:
        return within(SECONDS, partial(_newest, job))
    except (PionError, TimeoutError):
        return None


def _newest(job: Job) -> PrepareSpeed | None:
    for name, head in reversed(list(runs_in(open_store(job.store)).items())[-RUNS:]):
        record = head.stages.get("prepare")
        speeds = _speeds(record.result) if record is not None else []
        if speeds:
            return PrepareSpeed(name, min(speeds))
    return None


def _speeds(result: Mapping[str, Any]) -> list[float]:
    """Return the speeds in the result of a prepare stage: a report of sources for each part."""
    parts = [part for part in result.values() if isinstance(part, Mapping)]
    sources = [s for part in parts for s in part.get("sources") or () if isinstance(s, Mapping)]
    found = [source.get("mb_per_second") for source in sources]
    return [float(speed) for speed in found if isinstance(speed, int | float) and speed > 0]
