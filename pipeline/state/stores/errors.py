"""What a failure of a store means for the command, and errors as plain JSON between processes.

Over a pipe, class and fields of an error are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from pion.errors import (
    BadInput,
    Fenced,
    Interrupted,
    NotDurable,
    Paused,
    PionError,
    PlanFailed,
    Stopped,
    Trouble,
)
from pipeline.state.stores.base import Conflict, Missing, StoreError


def verdict(
    error: StoreError,
    kind: type[PionError],
    safe: str,
    *,
    managed: bool = False,
    command: str = "the same command",
) -> PionError:
    """Return the error that ends a command whose store failed with `error`.

    `kind` says how far the command was. It is the class of the error, which has the exit code:

    * `NotDurable` (74): some finished work is in no commit yet.
    * `BadInput` (2): the command does work, but has not started it. The error is `Interrupted` (75)
      if a manager started the command (`managed`) and restarts it after an outage.
    * `PionError` (1): the command only reads, asks or copies, so there is no work to lose.

    `safe` says what is not lost, and `command` is what to run again.
    """
    fix = "When the store can be reached again, run" if error.outage else "Fix the problem and run"
    if kind is BadInput and managed and error.outage:
        kind = Interrupted
    return kind(f"{error} {safe} {fix} {command} again.")


@contextlib.contextmanager
def before_work(safe: str, *, managed: bool = False) -> Iterator[None]:
    """Raise the verdict on a StoreError in the block. The block starts no work."""
    try:
        yield
    except StoreError as error:
        raise verdict(error, BadInput, safe, managed=managed) from error


# ---------------------------------------------------------------- over a pipe

# The classes that cross a pipe, each with the attributes that its constructor takes. A class
# without attributes is built from its text. A subclass that is not listed arrives as its nearest
# listed base class.
_FIELDS: Mapping[type[PionError], tuple[str, ...]] = {
    PionError: (),
    BadInput: (),
    Fenced: (),
    Stopped: (),
    Paused: (),
    NotDurable: (),
    Interrupted: (),
    Trouble: ("step", "rows", "what"),
    PlanFailed: ("plan", "why"),
    Missing: ("key", "url"),
    Conflict: ("key", "url"),
    StoreError: ("action", "where", "reason", "outage"),
}
_BY_NAME = {kind.__name__: kind for kind in _FIELDS}


def error_to_json(error: PionError) -> dict[str, Any]:
    """Return what `error_from_json` needs to build an equal error, as plain JSON."""
    kind = next(kind for kind in type(error).__mro__ if kind in _FIELDS)
    names = _FIELDS[kind]
    return {
        "class": kind.__name__,
        "fields": {name: getattr(error, name) for name in names} if names else {"text": str(error)},
    }


def error_from_json(raw: Mapping[str, Any]) -> PionError:
    """Return the error that `error_to_json` described: the same class, text and exit code."""
    kind, fields = _BY_NAME[raw["class"]], raw["fields"]
    return kind(**fields) if _FIELDS[kind] else kind(fields["text"])
