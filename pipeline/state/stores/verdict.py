"""Decide what a store's failure means for the command: the exit code, and the advice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum

from pion.errors import BadInput, Interrupted, NotDurable, PionError
from pipeline.state.stores.base import StoreError


class Moment(Enum):
    """How far a command was when its store failed.

    NO_WORK: the command only reads, asks or copies, so there is no work to lose.
    BEFORE_WORK: the command does work, but has not started it.
    WORK_DONE: some finished work is in no commit yet.
    """

    NO_WORK = "no work"
    BEFORE_WORK = "before work"
    WORK_DONE = "work done"


def verdict(
    error: StoreError,
    moment: Moment,
    safe: str,
    *,
    managed: bool = False,
    command: str = "the same command",
) -> PionError:
    """Return the error that ends a command whose store failed with `error`.

    Its class has the exit code. Once work is done, the code is 74. Before any work it is 2, or 75
    if a manager started the command (`managed`) and restarts it after an outage. For a command that
    does no work it is 1. `safe` says what is not lost, and `command` is what to run again.
    """
    fix = "When the store can be reached again, run" if error.outage else "Fix the problem and run"
    text = f"{error} {safe} {fix} {command} again."
    match moment:
        case Moment.WORK_DONE:
            return NotDurable(text)
        case Moment.BEFORE_WORK:
            return Interrupted(text) if managed and error.outage else BadInput(text)
        case Moment.NO_WORK:
            return PionError(text)


@contextlib.contextmanager
def before_work(safe: str, *, managed: bool = False) -> Iterator[None]:
    """Raise the verdict on a StoreError in the block. The block starts no work."""
    try:
        yield
    except StoreError as error:
        raise verdict(error, Moment.BEFORE_WORK, safe, managed=managed) from error
