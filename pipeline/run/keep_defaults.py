"""A run that has begun keeps defaults that follow from other fields as they were when it began."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.job import STAGES, Job
from pipeline.state.records import Head


def keep_warmup(
    job: Job,
    head: Head,
    redo: str | None,
    read_inputs: Callable[[str, str], Mapping[str, Any] | None],
) -> None:
    """Give stages that have begun the warm-up that they began with, unless the job names another.

    The default depends on the steps. Without this, raising the steps would change the warm-up too.
    """
    for stage in job.train_stages:
        section = job.section(stage)
        redone = redo is not None and STAGES.index(redo) <= STAGES.index(stage)
        digest = _digest(head, stage)
        if section.warmup_given or redone or digest is None:
            continue
        begun = (read_inputs(stage, digest) or {}).get(f"{stage}.warmup_steps")
        if begun == section.warmup_steps:
            continue  # a value that is set would count as named, and would not be shortened
        if type(begun) is int and (section.steps is None or begun < section.steps):
            section.warmup_steps = begun


def _digest(head: Head, stage: str) -> str | None:
    """Return the digest under which a stage was finished or begun; None if it was not."""
    if stage in head.stages:
        return head.stages[stage].digest
    return next((entry.digest for entry in head.checkpoints if entry.stage == stage), None)
