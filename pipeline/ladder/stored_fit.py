"""Read the fit of a ladder from the store that keeps the ladder."""

from __future__ import annotations

from pion.errors import BadInput
from pipeline.ladder.fit import Fit
from pipeline.state.record_json import damaged, parse_record
from pipeline.state.stores import Missing, Store
from pipeline.state.stores.base import is_run_name

LADDERS = "_ladders"


def read_fit(store: Store, name: str) -> Fit:
    """Return the fit of the ladder `name`.

    Raises BadInput if there is no such ladder, if it has no fit yet, and for a record that can't be
    read; and StoreError.
    """
    if not is_run_name(name):
        raise BadInput(f"--ladder {name!r:.200}: a ladder has a name, such as small.")
    key = f"{LADDERS}/{name}.json"
    try:
        data = store.read(key)
    except Missing:
        raise BadInput(
            f"there is no ladder {name!r} in {store.url}{_those_there(store)} To make one: pion "
            "ladder JOB, with a job of this name and store. Without --ladder, sizes follow a rule, "
            "and no loss is predicted."
        ) from None
    where = f"{store.url}/{key}"
    found = parse_record(data, where).get("fit")
    if found is None:
        raise BadInput(
            f"the ladder {name!r} in {store.url} is not finished, so it predicts nothing yet. To "
            "finish it, run the same `pion ladder` command again. Without --ladder, sizes follow a "
            "rule, and no loss is predicted."
        )
    if not isinstance(found, dict):
        raise damaged(where, "fit should be an object")
    return Fit.from_record(found, where)


def _those_there(store: Store) -> str:
    """Return the end of a sentence, with the names of ladders that are there."""
    keys = sorted(entry.key for entry in store.list(f"{LADDERS}/"))
    names = [key.removeprefix(f"{LADDERS}/") for key in keys]
    names = [name.removesuffix(".json") for name in names if "/" not in name]
    if not names:
        return "."
    return f", which has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}."
