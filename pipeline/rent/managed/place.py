"""Where machines of one kind come from, in SkyPilot's words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.rent.managed.managed_jobs import ManagedJob


@dataclass(frozen=True)
class Place:
    """A cloud, a region of it, a GPU there, and whether it is rented as spot."""

    cloud: str | None
    region: str | None
    gpu: str | None
    spot: bool

    def __str__(self) -> str:
        machine = f"{self.gpu or 'CPU'} {'spot' if self.spot else 'on demand'}"
        return f"{machine} on {'/'.join(filter(None, (self.cloud, self.region))) or 'any cloud'}"


def place_of(job: ManagedJob) -> Place:
    """Return where a managed job's machine is, from SkyPilot's words: `[spot](A40:1, cpus=9)`."""
    words = job.resources or ""
    gpu = re.search(r"([A-Za-z][\w-]*):\d", words)
    return Place(job.cloud, job.region, gpu.group(1) if gpu else None, "[spot]" in words.lower())
