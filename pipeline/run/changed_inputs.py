"""Which files on this machine are others than those that a run was started with."""

from __future__ import annotations

from pipeline.data.fingerprint import changed_sources
from pipeline.job import STAGES, Job
from pipeline.job.digest import digest_job
from pipeline.state.head import Head
from pipeline.state.kept_inputs import content_of
from pipeline.state.run_state import RunState


def changed_inputs(
    job: Job, run: RunState, head: Head | None, redo: str | None = None, job_path: str = "JOB"
) -> list[str]:
    """Say of each input that has changed what the run goes on with, and how to use the new content.

    What `redo` reads again does not count. Raises StoreError.
    """
    kept = run.read_inputs() if job.kept_inputs else {}
    others = [
        (key, path, stage)
        for key, (stage, path) in job.kept_inputs.items()
        if path in kept and content_of(job.input_path(path)) not in ({}, kept[path])
    ]
    prepared = None if head is None else head.stages.get("prepare")
    if prepared is not None and prepared.digest == digest_job(job).stages["prepare"]:
        others += [(*source, "prepare") for source in changed_sources(job, prepared.result)]
    return [
        f"{key}: {path} has changed since {'`prepare`' if stage == 'prepare' else 'this run began'}"
        + (
            # Else the digest of the stage has refused it.
            ". Nothing was learned from it yet: the file as it is now counts"
            if stage == "reinforce"
            else ". The run goes on with what it began with. To use the file as it is now: pion "
            f"run {job_path} --redo {stage}"
        )
        for key, path, stage in others
        if redo is None or STAGES.index(stage) < STAGES.index(redo)
    ]
