"""Decide what a store's failure means for the command: the exit code, and the advice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pion.errors import BadInput, Interrupted, PionError
from pipeline.state.stores.base import StoreError


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
