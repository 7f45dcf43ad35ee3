"""Yield cores that other programs use too, and count how long this process waits for cores."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Nanoseconds that each thread has run, and has waited for a core, by the thread's id.
Times = dict[int, tuple[int, int]]

# A busy machine is waited for at most so many times longer than another one.
MOST_SLOW = 10.0

# Threads that wanted to compute for fewer nanoseconds say little about the machine.
LEAST_NS = 20_000_000


def yield_cores() -> None:
    """Let the threads of torch wait for each other only briefly before they sleep, unless the user
    has said how they wait.

    Call this before torch is imported, here and in the processes that this one starts. By default,
    a thread spins for a millisecond while it waits. If other programs use the cores too, it takes
    the core from the thread that it waits for. Next to two other programs on two cores, products of
    128 tokens of a model of width 32 were then made 62 times in a second, and with a short spin
    19,341 times. Alone, the demo trained as fast with a short spin. Threads that
    sleep at once made such products 16 times as slow then. The results are the same.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def core_times(tasks: Path = Path("/proc/self/task")) -> Times:
    """Return the times of all threads of this process; empty where the kernel does not count."""
    times: Times = {}
    with contextlib.suppress(OSError, ValueError):
        for task in tasks.iterdir():
            with contextlib.suppress(FileNotFoundError):  # the thread has just ended
                run, waited, _ = (task / "schedstat").read_text("utf-8").split()
                times[int(task.name)] = int(run), int(waited)
    return times


def waited_share(before: Times, now: Times, least: float = LEAST_NS) -> float | None:
    """Return which part of the time in which threads wanted to compute they waited for a core.

    None if they wanted to compute for fewer than `least` nanoseconds.
    """
    run = waited = 0
    for thread, (ran, stood) in now.items():
        ran_before, stood_before = before.get(thread, (0, 0))
        run, waited = run + ran - ran_before, waited + stood - stood_before
    return waited / (run + waited) if run + waited >= least else None


def slowness(now: Times | None = None) -> float:
    """Return how many times longer this process has computed than on a machine of its own, from 1
    to MOST_SLOW. `now` are the times of its threads; None: as they are."""
    share = waited_share({}, core_times() if now is None else now) or 0.0
    return 1 / max(1 - share, 1 / MOST_SLOW)
