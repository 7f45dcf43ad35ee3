"""Errors that a person can act on, each with the exit code of the process.

The message says what failed, where, what is safe and how to continue. The command line prints the
message without a traceback. Any other uncaught exception is a bug and exits with 1.
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
