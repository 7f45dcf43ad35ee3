"""`pion rm`: remove runs from their store. Published models, and what runs share, stay."""

from __future__ import annotations

from collections.abc import Sequence

from pion.errors import BadInput, PionError, told
from pipeline.commands.data import say_unused
from pipeline.console.formats import show, size
from pipeline.console.print_and_ask import ask_to_delete
from pipeline.state.find_run import open_run
from pipeline.state.removal import Removable, find_removable, remove
from pipeline.state.shared.prune import list_shared
from pipeline.state.stores import DEFAULT_STORE, Store, StoreError, open_store
from pipeline.state.stores.clock import Clock
from pipeline.state.stores.errors import before_work, verdict


def remove_runs(runs: Sequence[str], *, yes: bool, take_over: bool) -> None:
    """Remove the runs.

    Raises BadInput, with nothing deleted, if one of them is not there or may be in use, and if
    neither a person nor `yes` agrees.
    """
    states = {run.url: run for run in map(open_run, runs)}
    with before_work("Nothing was deleted."), told(after=" Nothing was deleted."):
        found = [find_removable(run, take_over=take_over) for run in states.values()]
    for one in found:
        show(f"{one.run.url}: {size(one.bytes)}")
    if not yes:
        what = "this run" if len(found) == 1 else f"these {len(found)} runs"
        ask_to_delete(f"Delete {what} for good?", f"This would delete {what}")
    for one in found:
        _remove(one)
    if any(one.has_base for one in found):
        show(
            "The models that runs start from stay in _bases: `pion help fine-tune` says when one "
            "may be deleted."
        )
    for store in {one.run.store.url: one.run.store for one in found}.values():
        _say_unused(store)


def _remove(one: Removable) -> None:
    try:
        left = remove(one)
    except StoreError as error:
        raise verdict(error, PionError, f"A part of {one.run.url} may be left.") from error
    show(f"removed {one.run.url}: {size(one.bytes)} freed. Published models stay.")
    if left:
        show(f"{left} files stay there, because Pion does not write files with such names.")


def _say_unused(store: Store) -> None:
    """Say how much prepared data no run uses now. The removal is done, so no error ends it."""
    default = store.url == open_store(DEFAULT_STORE).url
    try:
        say_unused(list_shared(store, Clock()), None if default else store.url)
    except (BadInput, StoreError) as error:
        show(f"which prepared data no run uses is not known: {error}")
