"""One run of a search: what the cap over all runs leaves for it, and `pion run` as its process.

What a run has spent is what its HEAD says, as for `budget.hours` of a single run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from pion.errors import BadInput, Fenced, Interrupted, NotDurable, PionError, Stopped
from pipeline.console.formats import duration, money
from pipeline.cost.budget import price_per_hour
from pipeline.job import Budget
from pipeline.machine.child_process import PART_OF_SEARCH
from pipeline.machine.rented import PAID_SINCE, PRICE_VARIABLE, is_rented
from pipeline.state.head import Spent
from pipeline.state.record_json import Amount, open_record

# The bounds of a cap.
MOST = {"hours": 10**7, "dollars": 10**9}
_AS_TEXT = {"hours": "{:g} hours", "dollars": "${:g}"}
# A run that its budget has stopped has spent at least this share of it: HEAD counts at commits.
_REACHED = 0.99


@open_record
@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What the store keeps of a search, next to its runs.

    Attributes:
        hours, dollars: the cap over all runs, on all their machines; None: no limit.
        failed: why a run has no result, by its name.
    """

    hours: Amount | None = None
    dollars: Amount | None = None
    failed: Mapping[str, str] = field(default_factory=dict)

    def limits(self, spent: Spent) -> list[tuple[str, float, float]]:
        """Return each limit of the cap: its name, the most, and what is spent of it."""
        both = (("hours", self.hours, spent.hours), ("dollars", self.dollars, spent.dollars))
        return [(name, most, part) for name, most, part in both if most is not None]


def check_cap(cap: SearchRecord, budget: Budget) -> None:
    """Raise BadInput for a cap out of bounds, and for one in dollars if no price is known."""
    for name, most, _ in cap.limits(Spent()):
        if not 0 < most <= MOST[name]:
            raise BadInput(
                f"--{name} {most:g}: give a number above 0, and at most {MOST[name]:,}. Nothing "
                "was started."
            )
    if cap.dollars is not None and price_per_hour(budget) is None:
        raise BadInput(
            f"--dollars {cap.dollars:g}: the price of this machine is not known. Nothing was "
            f"started. Set budget.dollars_per_hour or {PRICE_VARIABLE}, or limit --hours instead."
        )


def refuse_beyond(
    cap: SearchRecord, spent: Spent, run: str = "", hours: float = 0.0, price: float | None = None
) -> None:
    """Raise Stopped if the cap is reached, or if the run would exceed it, which is expected to take
    so many more hours, at `price` dollars per hour."""
    limits = " and ".join(_AS_TEXT[name].format(most) for name, most, _ in cap.limits(spent))
    option = "--dollars" if cap.dollars is not None else "--hours"
    advice = (
        "Every finished run is kept. To continue, run the same command again with a larger "
        f"{option}."
    )
    if any(part >= _REACHED * most for _, most, part in cap.limits(spent)):
        raise Stopped(f"the cap over all runs is reached: {describe(spent)} of {limits}. {advice}")
    then = spent.plus(3600 * hours, price, spent.until)
    if any(part > most for _, most, part in cap.limits(then)):
        raise Stopped(
            f"run {run} would exceed the cap over all runs: {describe(spent)} of {limits} are "
            f"spent, and it would take about {duration(3600 * hours)} more. {advice}"
        )


def budget_left(cap: SearchRecord, budget: Budget, others: Spent) -> dict[str, float]:
    """Return the budget of a run as runtime settings: what the other runs leave of the cap, which
    is not reached, and at most what the job allows."""
    return {
        f"budget.{name}": min(most - part, getattr(budget, name) or most)
        for name, most, part in cap.limits(others)
    }


def total(spent: Iterable[Spent]) -> Spent:
    """Return what runs have cost together."""
    each = list(spent)
    return Spent(sum(run.hours for run in each), sum(run.dollars for run in each))


def describe(spent: Spent) -> str:
    """Return what was spent, in words."""
    dollars = f", {money(spent.dollars)}" if spent.dollars else ""
    return f"{duration(3600 * spent.hours)}{dollars}"


# ---------------------------------------------------------------- its process

# Runs `pion run` with these arguments, and returns its exit code.
Execute = Callable[[Sequence[str]], int]
# The errors that end a search as they ended its run. Any other code is a failure of the run.
_ENDS = {end.exit_code: end for end in (BadInput, Fenced, NotDurable, Interrupted)}
_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
# Loaded here: after a fork, other threads of the parent may have held the loader's lock.
_LIBC = ctypes.CDLL(None)


def run_to_end(execute: Execute, name: str, arguments: Sequence[str]) -> int:
    """Do `pion run` of the run `name`, and return 0 if it is done, 1 if it has failed, or 4 if it
    has stopped. Raises the error that `pion run` ended with, for any other end."""
    code = execute(arguments)
    if code in (0, PionError.exit_code, Stopped.exit_code):
        return code
    if code < 0:
        killed = signal.Signals(-code).name
        raise PionError(
            f"run {name} was killed by {killed}. If nobody did this, its memory may have run out. "
            "What it has committed is safe. Run the same command again to continue."
        )
    end = Interrupted if code == _INTERRUPTED else _ENDS.get(code, PionError)
    how = "was interrupted" if end is Interrupted else "did not finish (see above)"
    raise end(
        f"run {name} {how}. Every finished run is kept, and so is every saved step of this run. "
        "Run the same command again to continue."
    )


class RunProcesses:
    """Runs `pion run`, one process after the other. Each ends when this process does.

    With `to_stderr`, the processes print nothing to standard output. A rented machine is paid for
    once: the first run pays from the start of the rental, and each later one from the end of the
    one before.
    """

    def __init__(self, *, to_stderr: bool) -> None:
        self._paid_since: float | None = None
        self._to_stderr = to_stderr

    def __call__(self, arguments: Sequence[str]) -> int:
        """Run `pion run` with these arguments, and return its exit code.

        A signal to this process goes to that process, which saves. Raises Interrupted if it ended
        by itself.
        """
        paid = {} if self._paid_since is None else {PAID_SINCE: repr(self._paid_since)}
        code, heard = _passing_on_signals(
            lambda: subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if self._to_stderr else None,
                env=os.environ | paid | {PART_OF_SEARCH: "1"},
                preexec_fn=_begin,
            )
        )
        if is_rented():
            self._paid_since = time.time()
        # Without a handler, when Python ends, a signal kills it.
        killed = [-number for number in heard]
        if heard and code in (0, PionError.exit_code, Stopped.exit_code, *killed):
            raise Interrupted(
                "Interrupted at the end of a run. Every finished run is kept. Run the same command "
                "again to continue."
            )
        return code


def _begin() -> None:
    """Let the kernel send this process SIGTERM, on which it saves, when its parent is gone. Until
    it listens (early_sigterm), signals wait: they would end Python with a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _passing_on_signals(start: Callable[[], subprocess.Popen[bytes]]) -> tuple[int, list[int]]:
    """Start a process, pass all SIGINT and SIGTERM that come on to it, and wait for its end. Return
    its exit code and these signals.

    Ctrl-C at a terminal reaches the process too; it takes the second signal for an echo.
    """
    heard: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, hear) for number in _SIGNALS}
    woken = signal.set_wakeup_fd(-1)  # it would end this process at once (early_sigterm)
    try:
        process = start()
        for number in heard:
            process.send_signal(number)
        return process.wait(), heard
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
