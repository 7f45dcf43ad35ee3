"""Which files on this machine are others than those that a run was started with."""

from __future__ import annotations

from pipeline.data.fingerprint import changed_sources
from pipeline.job import STAGES, Job
from pipeline.job.digest import digest_job
from pipeline.state.head import Head
from pipeline.state.kept_inputs import changed_kept_inputs, stage_of
from pipeline.state.run_state import RunState


def changed_inputs(
    job: Job, run: RunState, head: Head | None, redo: str | None = None, job_path: str = "JOB"
) -> list[str]:
    """Say of each input that has changed what the run goes on with, and how to use the new content.

    What `redo` reads again does not count. Raises StoreError.
    """
    again = STAGES[STAGES.index(redo) :] if redo in STAGES else []
    words = []
    for key, path in changed_kept_inputs(job, run):
        stage, began = stage_of(key), f"{key}: {path} has changed since this run began"
        if stage == "reinforce":  # else the stage's digest would have refused it
            words.append(f"{began}. Nothing was learned from it yet: the file as it is now counts")
        elif stage not in again:
            goes_on = "The run goes on with what it began with. To use the file as it is now"
            words.append(f"{began}. {goes_on}: pion run {job_path} --redo {stage}")
    prepared = None if head is None or "prepare" in again else head.stages.get("prepare")
    if prepared is not None and prepared.digest == digest_job(job).stages["prepare"]:
        words += [
            f"{key}: {path} has changed since `prepare`. The run goes on with the rows that were "
            f"prepared. To prepare the new ones and train on them: pion run {job_path} --redo "
            "prepare"
            for key, path in changed_sources(job, prepared.result)
        ]
    return words
