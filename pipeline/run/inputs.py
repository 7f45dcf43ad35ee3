"""The inputs of one start of `pion run`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from pipeline.job import Job
from pipeline.job.digest import Digests
from pipeline.run.preemption_stop import PreemptionStop
from pipeline.run.signals import StoppingOnSignals
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
