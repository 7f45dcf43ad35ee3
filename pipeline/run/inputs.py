"""The inputs of one start of `pion run`, and which files are others than at the first start."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from pipeline.job import STAGES, Job
from pipeline.job.digest import Digests, digest_job
from pipeline.job.stages import TRAINING
from pipeline.run.preemption_stop import PreemptionStop
from pipeline.run.signals import StoppingOnSignals
from pipeline.state.head import Head
from pipeline.state.kept_inputs import content_of
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.workspace import Workspace


@dataclass
class RunOptions:
    """What the command line adds to the job."""

    job_path: str = "JOB"
    job_text: str = ""
    redo: str | None = None
    until: str | None = None  # the last stage to do now; None: all
    take_over: bool = False
    unattended: bool = field(default_factory=lambda: not sys.stdin.isatty())


@dataclass(frozen=True)
class Start:
    """One start of `pion run` that has something to do.

    Attributes:
        run: the run in its store.
        owner: this process, as an owner of the run.
        at: when the command began, in Unix time.
        price: of this machine, in dollars per hour; None if it is not known.
        preemption_stop: hears what saves take, and that a cloud will take a machine.
    """

    job: Job
    options: RunOptions
    digests: Digests
    run: RunState
    owner: Owner
    stopping: StoppingOnSignals
    at: float
    price: float | None
    preemption_stop: PreemptionStop

    @property
    def workspace(self) -> Workspace:
        """The run's folder on this machine."""
        return Workspace(self.run.store, self.run.name)


def changed_inputs(
    job: Job, run: RunState, head: Head | None, redo: str | None = None, job_path: str = "JOB"
) -> list[str]:
    """Name each changed input, the content that the run continues with, and how to use the new one.

    What `redo` reads again does not count. Raises StoreError.
    """
    from pipeline.data.fingerprint import changed_sources  # most starts need less

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
            if stage in TRAINING
            else ". The run continues with the first content. To use the file as it is now: pion "
            f"run {job_path} --redo {stage}"
        )
        for key, path, stage in others
        if redo is None or STAGES.index(stage) < STAGES.index(redo)
    ]
