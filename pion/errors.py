"""Errors a person can act on, each with the process exit code it ends in.

The message says what failed, where, what is safe and how to go on; the command line prints it
without a traceback. Anything else that escapes is a bug and exits with 1.
"""

from collections.abc import Sequence
from typing import Any


class PionError(Exception):
    """Something failed and the message says what to do about it."""

    exit_code = 1


class BadInput(PionError):
    """The request itself is wrong; nothing was started and nothing was lost."""

    exit_code = 2


class Fenced(PionError):
    """Another process owns the run now; this one has stopped and will not write again."""

    exit_code = 3


class Stopped(PionError):
    """Stopped on request or by a budget, with state saved."""

    exit_code = 4


class Trouble(PionError):
    """A training step went wrong numerically; nothing from it on is fit to be saved.

    `rows` is that step's [first, stop), `what` says what it gave, and `metrics` has those of the
    good steps before it that had not been handed out (see `Trainer.drain_metrics`).
    """

    def __init__(
        self,
        step: int,
        rows: tuple[int, int],
        what: str,
        metrics: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(step, rows, what, metrics)  # what unpickling calls this with
        self.step, self.rows, self.what, self.metrics = step, rows, what, list(metrics)

    def __str__(self) -> str:
        first, stop = self.rows
        return (
            f"step {self.step} (rows {first} to {stop - 1}) gave {self.what}; the weights since "
            "then are unusable and have not been saved. The last checkpoint is from before. Go on "
            "from there without those rows, or with a lower lr or clip"
        )


class NotDurable(PionError):
    """Work was done that could not be stored; the message says where the local copy is."""

    exit_code = 74


class Interrupted(PionError):
    """Interrupted with state saved: the same command goes on from there."""

    exit_code = 75
