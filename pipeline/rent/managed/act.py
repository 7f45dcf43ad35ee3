"""Act on what is wrong with a rental, and record the action in the run's events."""

from __future__ import annotations

import contextlib
import itertools
import json
import uuid
from collections.abc import Sequence
from typing import Protocol

from pipeline.rent.managed.diagnose import Finding
from pipeline.rent.managed.lookout import Look
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.terminate_pods import terminate_each
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError

_number = itertools.count()


class Restarts(Protocol):
    """What ends a job that makes no progress, and gets another machine for the run."""

    def restart(
        self, provider: Provider, finding: Finding, job: ManagedJob, look: Look
    ) -> list[str]:
        """Return what was done, in words. Raises PionError if SkyPilot fails."""


def act(
    finding: Finding, job: ManagedJob, look: Look, provider: Provider, restarter: Restarts
) -> list[str]:
    """End pods, or cancel or restart the job, as the finding says; return what was done, in words.

    Raises PionError if SkyPilot or RunPod fails.
    """
    if finding.action == "note":
        return []
    if finding.action == "relaunch":
        return restarter.restart(provider, finding, job, look)
    done = terminate_each(finding.pods, provider.terminate_pod)
    if finding.action == "cancel":
        provider.cancel([job.id])
        done.append(f"cancelled managed job {job.id}")
    return done


def log_finding(state: RunState, look: Look, finding: Finding, done: Sequence[str]) -> None:
    """Record in the run's events what was done and why. If the store is down, record nothing."""
    if look.head is None:
        return
    at = state.clock.now()
    event = {
        "event": "watch",
        "epoch": look.head.epoch,
        "at": at,
        "what": finding.what,
        "why": finding.why,
        "done": list(done),
    }
    # The owner of that epoch numbers its own events, so these need other names. Names order events.
    name = f"watch-{int(1000 * at):014d}-{next(_number):06d}-{uuid.uuid4().hex}"
    key = state.key(f"events/{look.head.epoch}/{name}.jsonl")
    with contextlib.suppress(StoreError):
        state.store.write(key, (json.dumps(event) + "\n").encode())
        state.store.flush()
