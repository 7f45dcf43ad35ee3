"""The job that a run was last started with, as its store records it."""

from __future__ import annotations

from pion.errors import BadInput
from pipeline.state.head import RunState
from pipeline.state.records import Head


def recorded_stages(state: RunState, head: Head) -> list[str] | None:
    """The stages of the job that HEAD names, in order; None if the job can't be read here."""
    text = state.read_job(head.job) if head.job else None
    if text is None:
        return None
    from pipeline.job_file import parse_job

    try:
        return parse_job(text, f"the job of run {state.name}").stages
    except BadInput:  # another version's
        return None
