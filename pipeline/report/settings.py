"""A run's settings by their paths, and in which of them several runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.errors import BadInput
from pipeline.state.recorded_job import recorded_job
from pipeline.state.records import Head
from pipeline.state.run_state import RunState

# These always differ, and say nothing about the training.
_NAMES = ("name", "store")


@dataclass(frozen=True)
class Settings:
    """A job's settings by their dotted paths, and the optimizer steps of its stages.

    Empty if the job is not known.
    """

    by_path: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)


def settings_of(state: RunState, head: Head) -> Settings:
    """Return the settings of the run's job. Empty if no job is recorded that this Pion can read.

    Raises StoreError.
    """
    try:
        job = recorded_job(state, head)
    except BadInput:
        return Settings()
    if job is None:
        return Settings()
    sections = {stage: job.section(stage) for stage in job.train_stages}
    return Settings(
        dict(_paths(job.model_dump(mode="json", by_alias=True))),
        {stage: part.total_steps for stage, part in sections.items() if part.steps_are_known},
    )


def differing(runs: Sequence[Settings]) -> dict[str, list[Any]] | None:
    """Return the settings in which runs differ: path → the value of each run, in order.

    A run whose job is not known does not count, and has None everywhere. Returns None if fewer than
    two are known.
    """
    known = [run.by_path for run in runs if run.by_path]
    if len(known) < 2:
        return None
    found = {}
    for path in dict.fromkeys(path for one in known for path in one):
        values = [one.get(path) for one in known]
        if path not in _NAMES and any(value != values[0] for value in values):
            found[path] = [run.by_path.get(path) for run in runs]
    return found


def _paths(values: Mapping[str, Any], under: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        path = f"{under}.{key}" if under else key
        if isinstance(value, dict) and value:
            found += _paths(value, path)
        else:
            found.append((path, value))
    return found
