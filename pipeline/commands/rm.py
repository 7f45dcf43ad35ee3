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
        removables = [find_removable(run, take_over=take_over) for run in states.values()]
    for removable in removables:
        show(f"{removable.run.url}: {size(removable.bytes)}")
    if not yes:
        which_runs = "this run" if len(removables) == 1 else f"these {len(removables)} runs"
        ask_to_delete(f"Delete {which_runs} for good?", f"This would delete {which_runs}")
    for removable in removables:
        _remove(removable)
    if any(removable.has_base for removable in removables):
        show(
            "The models that runs start from stay in _bases: `pion help fine-tune` says when one "
            "may be deleted."
        )
    for store in {
        removable.run.store.url: removable.run.store for removable in removables
    }.values():
        _say_unused(store)


def _remove(removable: Removable) -> None:
    try:
        left = remove(removable)
    except StoreError as error:
        raise verdict(error, PionError, f"A part of {removable.run.url} may be left.") from error
    show(f"removed {removable.run.url}: {size(removable.bytes)} freed. Published models stay.")
    if left:
        show(f"{left} files stay there, because Pion does not write files with such names.")


def _say_unused(store: Store) -> None:
    """Say how much prepared data no run uses now. The removal is done, so no error ends it."""
    default = store.url == open_store(DEFAULT_STORE).url
    try:
        say_unused(list_shared(store, Clock()), None if default else store.url)
    except (BadInput, StoreError) as error:
        show(f"which prepared data no run uses is not known: {error}")
