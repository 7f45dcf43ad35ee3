"""Restart a rental: end a managed job that makes no progress, and submit its task again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pion.errors import BadInput, PionError
from pipeline.rent.managed.diagnose import Finding
from pipeline.rent.managed.lookout import Look, Lookout
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.place import Place
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.submission import submitting_alone
from pipeline.rent.managed.terminate_pods import terminate_each
from pipeline.state.run_state import Clock

# How many seconds SkyPilot may take to cancel a job and end its machine.
CANCEL_SECONDS = 300.0
POLL_SECONDS = 5.0
# How often a run is restarted although no machine has owned it since.
FUTILE_RESTARTS = 3

# How a job ends that the restart has cancelled. With another final status, it ended by itself.
_CANCELLED = ("CANCELLED", "FAILED_CONTROLLER")


@dataclass(frozen=True)
class Pending:
    """A restart that has begun: cancel the old job, and submit its task again."""

    task: Any
    old: ManagedJob
    avoid: Collection[Place]


class _Futile(NamedTuple):
    """How often the run was restarted under one epoch, without any machine owning it since."""

    epoch: int
    restarts: int


class Restarter:
    """Restarts the rental `name`, in another place if needed, a limited number of times.

    `pending` is a restart that SkyPilot has not completed.
    """

    def __init__(self, name: str, lookout: Lookout, clock: Clock) -> None:
        self.pending: Pending | None = None
        self._name, self._lookout, self._clock = name, lookout, clock
        self._avoid: set[Place] = set()
        self._futile = _Futile(0, 0)

    def restart(
        self, provider: Provider, finding: Finding, job: ManagedJob, look: Look
    ) -> list[str]:
        """End the job and its pods, and submit it again; return what was done, in words.

        If the job can't be submitted again, leave it alone. If restarts don't help, end it for
        good. Raises PionError if SkyPilot fails.
        """
        epoch = look.head.epoch if look.head is not None else 0
        before = self._futile.restarts if self._futile.epoch == epoch else 0
        if before >= FUTILE_RESTARTS:
            done = terminate_each(finding.pods, provider.terminate_pod)
            if job.live:
                provider.cancel([job.id])
                done.append(f"cancelled managed job {job.id}")
            return [*done, f"no machine has owned the run after {before} restarts"]
        pending = self._make_task(provider, finding, job)
        if isinstance(pending, str):
            return [pending]
        done = terminate_each(finding.pods, provider.terminate_pod)
        self._futile, self._avoid = _Futile(epoch, before + 1), set(pending.avoid)
        self.pending = pending  # set before the job is cancelled, because that may half fail
        return [*done, self.complete(provider, pending)]

    def complete(self, provider: Provider, pending: Pending) -> str:
        """End the old job and submit the new one; return what was done, in words.

        Call it again after a PionError.
        """
        with submitting_alone(self._name):
            old, jobs = self._end(provider, pending.old.id)
            # A submission that seemed to fail may have succeeded.
            new = next((job.id for job in jobs if job.live and job.id > pending.old.id), None)
            if new is None and old is not None and old.status not in _CANCELLED:
                self.pending = None
                return (
                    f"managed job {old.id} was already over ({old.status}), so it was not restarted"
                )
            self._lookout.job_id = new or provider.submit(pending.task, self._name)
        self._lookout.attempts.forget()
        self.pending = None
        avoid = sorted(map(str, pending.avoid))
        elsewhere = f" and excluded {' and '.join(avoid)}" if avoid else ""
        return f"restarted the run as managed job {self._lookout.job_id}{elsewhere}"

    def _make_task(self, provider: Provider, finding: Finding, job: ManagedJob) -> Pending | str:
        """Return what to submit again, or why that is not possible."""
        avoid = [self._avoid | ({finding.avoid} if finding.avoid else set())]
        if finding.pods:
            # Without a restart nothing would end the pod, so allow the same place.
            avoid.append(self._avoid)
        why_not = ""
        for places in avoid:
            try:
                return Pending(provider.task_again(job, places), job, places)
            except BadInput as error:
                why_not = why_not or str(error)
        self._lookout.attempts.forget()  # try again after as many more machines
        return f"left the job alone, because it can't be submitted again: {why_not}"

    def _end(
        self, provider: Provider, job_id: int
    ) -> tuple[ManagedJob | None, Sequence[ManagedJob]]:
        """Cancel a live managed job, and wait until it has ended.

        Return what SkyPilot then says about this job, and about all jobs of the rental.
        """
        end, cancelled = self._clock.monotonic() + CANCEL_SECONDS, False
        while True:
            jobs = provider.managed_jobs(self._name, with_task=True)
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
