"""Errors that a person can act on, each with the exit code of the process.

The message says what failed, where, what is safe and how to continue. The command line prints the
message without a traceback. Any other uncaught exception is a bug and exits with 1.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class PionError(Exception):
    """Something failed and the message says what to do about it."""

    exit_code = 1


class BadInput(PionError):
    """The request itself is wrong; nothing was started and nothing was lost."""

    exit_code = 2


class TooFewRows(BadInput):
    """A split has no rows. `fits` is the `seq_len` with which it would have some, 0 if none is."""

    def __init__(self, message: str, split: str, fits: int) -> None:
        super().__init__(message)
        self.split, self.fits = split, fits


@contextmanager
def told(before: str = "", after: str = "") -> Iterator[None]:
    """Put words before and after the message of a BadInput that the block raises."""
    try:
        yield
    except BadInput as error:
        error.args = (f"{before}{error}{after}",)
        raise


class Fenced(PionError):
    """Another process owns the run now; this one has stopped and will not write again."""

    exit_code = 3


class Stopped(PionError):
    """Stopped on request or by a budget, with state saved."""

    exit_code = 4


class Paused(Stopped):
    """Stopped where the job's `pause_at` says, with state saved: nothing went wrong."""


class Trouble(PionError):
    """A training step went wrong numerically; the weights from that step on must not be saved.

    `rows` is the step's [first, stop), and `what` is its bad loss or gradient. `metrics` has the
    good steps before it that `Trainer.drain_metrics` has not returned yet.
    """

    def __init__(
        self,
        step: int,
        rows: tuple[int, int],
        what: str,
        metrics: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(step, rows, what, metrics)  # unpickling passes these arguments
        self.step, self.rows, self.what, self.metrics = step, rows, what, list(metrics)

    def __str__(self) -> str:
        first, stop = self.rows
        return (
            f"step {self.step} (rows {first} to {stop - 1}) gave {self.what}. The weights after "
            "that step are unusable and were not saved. The last checkpoint is older than the "
            "step. Resume from that checkpoint without those rows, or with a lower lr or clip"
        )


class PlanFailed(PionError):
    """A step can't be computed as planned; a new attempt can, by the smaller `plan`.

    `plan` is the record of a ComputePlan, and `why` says what failed.
    """

    exit_code = 75

    def __init__(self, plan: dict[str, Any], why: str) -> None:
        super().__init__(plan, why)
        self.plan, self.why = plan, why

    def __str__(self) -> str:
        return f"{self.why}. Run the same command again to resume with a smaller plan"


class NotDurable(PionError):
    """Finished work could not be stored; the message says where the local copy is."""

    exit_code = 74


class Interrupted(PionError):
    """Interrupted with state saved: the same command resumes from there."""

    exit_code = 75


class CardFailed(Interrupted):
    """The GPU or its driver failed. The same command resumes from the last checkpoint."""


def no_room(error: OSError, path: Path, needs: int = 0) -> str | None:
    """Return what is used up on the disk of `path`, a file that could not be written; None if
    `error` has another cause. `needs` is the file's size in bytes, 0: not known."""
    if error.errno == errno.EDQUOT:
        return f"the disk quota is used up{_amounts(None, needs)}"
    if error.errno != errno.ENOSPC:
        return None
    try:
        disk = os.statvfs(next(p for p in path.absolute().parents if p.exists()))
    except OSError:
        return f"the disk is full{_amounts(None, needs)}"
    if disk.f_files and not disk.f_favail:
        return "the disk is full: it can hold no more files, though it has free bytes (see `df -i`)"
    return f"the disk is full{_amounts(disk.f_bavail * disk.f_frsize, needs)}"


def _amounts(free: int | None, needs: int) -> str:
    """Return the sizes, as far as they explain the failure: somebody may have made room since."""
    amounts = [f"this file needs {_size(needs)}"] if needs else []
    amounts += [f"{_size(free)} are free"] if free is not None and free < needs else []
    return f" ({', '.join(amounts)})" if amounts else ""


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, the one that it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_panic(error: BaseException) -> bool:
    """Return whether a library in Rust failed inside its own code.

    Such an error is a BaseException, so that `except Exception` does not catch it, and its class
    can't be imported.
    """
    return type(error).__name__ == "PanicException"
