"""Start a rented run anew: end the managed job that comes to nothing, and submit its task again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.rent.managed.diagnose import Finding, Place
from pipeline.rent.managed.lookout import Lookout
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.submission import submitting_alone
from pipeline.state.records import Head
from pipeline.state.run_state import Clock

CANCEL_SECONDS = 300.0
"""How long SkyPilot may take to cancel a job and give its machine back."""
POLL_SECONDS = 5.0
TIMES_IN_VAIN = 3
"""How often a run is submitted anew before one of its machines has come to own it."""

_ENDED_FOR_IT = ("CANCELLED", "FAILED_CONTROLLER")
"""How a job ends that is submitted anew; one that ended otherwise did so by itself."""


@dataclass(frozen=True)
class Owed:
    """A task that is to be submitted in place of the managed job that is cancelled for it."""

    task: Any
    old: ManagedJob
    avoid: Collection[Place]


class Anew:
    """Starts the rental `name` anew: elsewhere where it must be, and not without end.

    `owed` is what is to be submitted still, after SkyPilot has failed to answer half-way.
    """

    def __init__(self, name: str, lookout: Lookout, clock: Clock) -> None:
        self.owed: Owed | None = None
        self._name, self._lookout, self._clock = name, lookout, clock
        self._avoid: set[Place] = set()
        self._in_vain = (0, 0)  # epoch, and how often the run was submitted anew under it

    def start(
        self, provider: Provider, finding: Finding, job: ManagedJob, head: Head | None
    ) -> list[str]:
        """End the job, and what pods it has, and submit it anew; what was done.

        It is left as it is if it can't be submitted, and ended for good if that never helps.
        Raises PionError if SkyPilot fails.
        """
        epoch = head.epoch if head is not None else 0
        times = 1 + (self._in_vain[1] if self._in_vain[0] == epoch else 0)
        if times > TIMES_IN_VAIN:
            done = provider.terminate(finding.pods)
            if job.live:
                provider.cancel([job.id])
                done.append(f"cancelled managed job {job.id}")
            return [*done, f"submitted anew {times - 1} times, no machine came to own the run"]
        owed = self._make_again(provider, finding, job)
        if isinstance(owed, str):
            return [owed]
        done = provider.terminate(finding.pods)
        self._in_vain, self._avoid = (epoch, times), set(owed.avoid)
        self.owed = owed  # before the job is cancelled, as that may half fail
        return [*done, self.submit(provider, owed)]

    def submit(self, provider: Provider, owed: Owed) -> str:
        """End the old job and submit the new one, however often that takes; what was done."""
        with submitting_alone(self._name):
            old, jobs = self._end(provider, owed.old.id)
            # A submission given up as failed may have been taken after all.
            new = next((job.id for job in jobs if job.live and job.id > owed.old.id), None)
            if new is None and old is not None and old.status not in _ENDED_FOR_IT:
                self.owed = None
                return f"managed job {old.id} has ended by itself meanwhile, as {old.status}"
            self._lookout.job_id = new or provider.submit(owed.task, self._name)
        self._lookout.forget_machines()
        self.owed = None
        elsewhere = f", not on {' or '.join(sorted(map(str, owed.avoid)))}" if owed.avoid else ""
        return f"submitted the run anew as managed job {self._lookout.job_id}{elsewhere}"

    def _make_again(self, provider: Provider, finding: Finding, job: ManagedJob) -> Owed | str:
        """The task to submit anew; words why there is none."""
        places = [self._avoid | ({finding.avoid} if finding.avoid else set())]
        if finding.pods:
            places.append(self._avoid)  # nobody ends that pod otherwise, and it is paid for
        words = ""
        for avoid in places:
            try:
                return Owed(provider.make_again(job, avoid), job, avoid)
            except BadInput as error:
                words = words or str(error)
        self._lookout.forget_machines()  # ask again after as many more
        return f"left as it is, as it can't be submitted anew: {words}"

    def _end(
        self, provider: Provider, job_id: int
    ) -> tuple[ManagedJob | None, Sequence[ManagedJob]]:
        """Cancel a managed job that lives and see it end; what SkyPilot says of it then."""
        end, cancelled = self._clock.monotonic() + CANCEL_SECONDS, False
        while True:
            jobs = provider.managed_jobs(self._name)
            job = next((known for known in jobs if known.id == job_id), None)
            if job is None or not job.live:
                return job, jobs
            if not cancelled:
                provider.cancel([job_id])
                cancelled = True
                continue
            if self._clock.monotonic() >= end:
                raise PionError(
                    f"SkyPilot has not cancelled managed job {job_id} in {CANCEL_SECONDS:.0f} s."
                )
            self._clock.sleep(POLL_SECONDS)
