"""The kind of a machine and where it is, read from SkyPilot's description."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.rent.managed.managed_jobs import ManagedJob


@dataclass(frozen=True)
class Place:
    """A cloud, one of its regions, a GPU, and whether it is rented as spot."""

    cloud: str | None
    region: str | None
    gpu: str | None
    spot: bool

    def __str__(self) -> str:
        machine = f"{self.gpu or 'CPU'} {'spot' if self.spot else 'on demand'}"
        return f"{machine} on {'/'.join(filter(None, (self.cloud, self.region))) or 'any cloud'}"


def place_of(job: ManagedJob) -> Place:
    """Return the place of a managed job's machine, from text such as `[spot](A40:1, cpus=9)`."""
    words = job.resources or ""
    gpu = re.search(r"([A-Za-z][\w-]*):\d", words)
    return Place(job.cloud, job.region, gpu.group(1) if gpu else None, "[spot]" in words.lower())
