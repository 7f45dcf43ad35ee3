"""What a store's failure means for the command that met it: the exit code, and the advice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum

from pion.errors import BadInput, Interrupted, NotDurable, PionError
from pipeline.state.stores.base import StoreError


class Moment(Enum):
    """How far a command had come when its store failed.

    NO_WORK: the command only reads, asks or copies, so there is no work to lose.
    BEFORE_WORK: the command would start work, and has not begun.
    WORK_DONE: there is work that no commit contains yet.
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
    """Return the error in which a command ends when its store fails with `error`.

    Its class has the exit code: 74 once work is done; before any work 2, or 75 if a manager
    started the command (`managed`) and will start it again after an outage; 1 for a command that
    does no work. `safe` says what is not lost, and `command` is what to run again.
    """
    remedy = "When the store can be reached again, run" if error.outage else "Fix that and run"
    text = f"{error} {safe} {remedy} {command} again."
    match moment:
        case Moment.WORK_DONE:
            return NotDurable(text)
        case Moment.BEFORE_WORK:
            return Interrupted(text) if managed and error.outage else BadInput(text)
        case Moment.NO_WORK:
            return PionError(text)


@contextlib.contextmanager
def before_work(safe: str, *, managed: bool = False) -> Iterator[None]:
    """Raise the verdict on a StoreError in the block, during which no work begins."""
    try:
        yield
    except StoreError as error:
        raise verdict(error, Moment.BEFORE_WORK, safe, managed=managed) from error
