"""What this process may use of its machine: a container often has a part of it."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

# What Linux says of the limits of a container, inside of it.
CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Return on how many cores this process may run: those that it is bound to, and no more than
    its container's share of the time of the machine's cores."""
    bound = len(os.sched_getaffinity(0))
    shares = [-(-quota // period) for quota, period in _cpu_times(cgroup) if quota > 0 < period]
    return max(1, min([bound, *shares]))


def _cpu_times(cgroup: Path) -> list[tuple[int, int]]:
    """Return how many microseconds of cores the container has in how many of the clock."""
    found = []
    with contextlib.suppress(OSError, ValueError):  # absent, or "max": no limit
        quota, period = (cgroup / "cpu.max").read_text("utf-8").split()
        found.append((int(quota), int(period)))
    with contextlib.suppress(OSError, ValueError):  # the same before cgroup 2; -1: no limit
        quota, period = (
            (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text("utf-8")
            for name in ("quota", "period")
        )
        found.append((int(quota), int(period)))
    return found


def usable_memory(cgroup: Path = CGROUP) -> int:
    """Return the bytes that new processes could use: what is free on the machine, and no more than
    the limit of the container."""
    return min([available_bytes(), *memory_limits(cgroup)])


def available_bytes() -> int:
    """Return the bytes that new processes of this machine could use."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text("utf-8"))
    assert found is not None  # Linux has this line since 3.14
    return int(found[1]) * 1024


def memory_limits(cgroup: Path = CGROUP) -> list[int]:
    """Return the memory limits, in bytes, of the container that this process runs in."""
    limits = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max": no limit
            limits.append(int((cgroup / name).read_text("utf-8")))
    return limits
