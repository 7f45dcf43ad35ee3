"""Say that other programs slow training on a CPU down, and how many threads are faster then.

The threads of a product wait for each other. If other programs use the cores, each product waits
until its last thread has had a core, and a tiny model has thousands of products in a step. Fewer
threads may then be faster. Their number is not changed here: it decides how sums are rounded, so a
resumed run would not be bit-identical.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.console.messages import Note, Say
from pipeline.machine.core_waits import Times, core_times, waited_share

# Below this part of the time, waiting for cores is normal: for our own uploader, for example.
SOME = 0.25
# From this part on, people should know, even if no number of threads helps.
MOST = 0.5
# A number of threads is advised if it is so many times as fast.
FASTER = 1.5
# Products of more operations take longer than the turns that programs have on a core.
SMALL_FLOPS = 1e9
# Seconds from the start of an attempt to the first look.
FIRST_SECONDS = 2.0
# Seconds between later looks, until the first trial. Each trial doubles them.
LOOK_SECONDS = 10.0
# Seconds that a number of threads is tried.
TRIAL_SECONDS = 0.1


@dataclass(frozen=True)
class Work:
    """A product as training makes it: of `rows` tokens with a matrix of `width` × `width`."""

    rows: int
    width: int

    @property
    def small(self) -> bool:
        """Whether its threads may have to wait for each other most of the time."""
        return 2.0 * self.rows * self.width**2 <= SMALL_FLOPS

    def rate(self, threads: int) -> float:
        """Return how many of these products a number of threads makes in a second, measured."""
        import torch
        from torch.nn import functional

        rows, matrix = torch.ones(self.rows, self.width), torch.ones(self.width, self.width)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            functional.silu(rows @ matrix)  # starts the threads
            made, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < TRIAL_SECONDS or made == 0:
                functional.silu(rows @ matrix)
                made += 1
            return made / took
        finally:
            torch.set_num_threads(before)


class BusyCores:
    """Looks at how long `threads` wait for cores: soon after an attempt has started, and later."""

    def __init__(
        self,
        work: Work,
        threads: int,
        say: Say,
        times: Callable[[], Times] = core_times,
        clock: Callable[[], float] = time.monotonic,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        self._work, self._threads, self._say = work, threads, say
        self._times, self._clock = times, clock
        self._rate = work.rate if rate is None else rate
        self._first, self._pause = True, LOOK_SECONDS
        self._said: set[str] = set()
        self._at, self._before = clock(), times()

    def look(self) -> None:
        """Say if training has had to wait for cores since the last look, a while ago."""
        if self._clock() - self._at < (FIRST_SECONDS if self._first else self._pause):
            return
        self._first = False
        share = waited_share(self._before, self._times())
        if share is not None and share >= SOME and "threads" not in self._said:
            self._judge(share)
        self._at, self._before = self._clock(), self._times()

    def _judge(self, share: float) -> None:
        """Say what helps, or only why training is slow."""
        waited = (
            f"warning: other programs use this machine's cores: training waited for a core "
            f"{share:.0%} of the time"
        )
        faster = self._faster()
        if faster is not None:
            threads, now, then = faster
            self._said |= {"threads", "busy"}
            text = (
                f"{waited}. With hardware.threads={threads}, products of this model's size are now "
                f"{then / now:.2g} times as fast as with {self._threads} ({now:,.0f} → {then:,.0f} "
                "per second). Stop with Ctrl-C, and run the same command with "
                f"hardware.threads={threads}: it resumes, and the result is equal up to rounding."
            )
        elif share >= MOST and "busy" not in self._said:
            self._said.add("busy")
            text = f"{waited}, so it is slow. Nothing is wrong with the run."
        else:
            return
        self._say(Note(text))

    def _faster(self) -> tuple[int, float, float] | None:
        """Return a number of threads that is faster, with the rates now and then, measured."""
        threads = self._threads
        if threads == 1 or not self._work.small:
            return None
        self._pause *= 2
        now = self._rate(threads)
        fewer = [2**n for n in range(threads.bit_length()) if 2**n < threads]
        then, best = max((self._rate(number), number) for number in fewer)
        return (best, now, then) if then >= FASTER * now else None
