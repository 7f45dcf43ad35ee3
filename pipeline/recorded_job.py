"""The job that a run was last started with, as its store records it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.state.head import RunState
from pipeline.state.records import Head

if TYPE_CHECKING:
    from pipeline.job import Job


def recorded_text(state: RunState, head: Head) -> str | None:
    """The job file that HEAD names, overrides merged in; None if there is no record of it."""
    return state.read_job(head.job) if head.job else None


def recorded_job(state: RunState, head: Head) -> Job | None:
    """The job that HEAD names; None if there is no record of it. Raises BadInput if it is one of
    another version of pion."""
    text = recorded_text(state, head)
    if text is None:
        return None
    from pipeline.job_file import parse_job

    return parse_job(text, f"the job of run {state.name}")


def recorded_stages(state: RunState, head: Head) -> list[str] | None:
    """The stages of the job that HEAD names, in order; None if the job can't be read here."""
    try:
        job = recorded_job(state, head)
    except BadInput:
        return None
    return None if job is None else job.stages
