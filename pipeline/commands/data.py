"""`pion data`: list the prepared data that the runs of a store share, and delete what none uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import moment, show, size
from pipeline.console.print_and_ask import ask_to_delete
from pipeline.state.find_run import known_runs
from pipeline.state.shared.prune import Listed, delete_due, list_shared, mark
from pipeline.state.stores import DEFAULT_STORE, Store, open_store
from pipeline.state.stores.clock import Clock
from pipeline.state.stores.errors import before_work

# Of a fingerprint, so many digits are shown.
SHOWN = 12


def show_data(store: str | None, *, as_json: bool) -> None:
    """Print the shared data of a store, the newest last."""
    where = open_store(store or DEFAULT_STORE)
    found = list_shared(where, Clock())
    if as_json:
        print(json.dumps([_to_json(one) for one in found], indent=1))
    elif not found:
        show(_nothing_there(where))
    else:
        show("\n".join(map(_in_words, found)))
        say_unused(found, store)


def say_unused(found: Sequence[Listed], store: str | None) -> None:
    """Say how much of the prepared data no run uses, and how to delete it. None: runs/."""
    unused = sum(one.unused for one in found if _may_go(one) and not _is_marked(one))
    if unused:
        show(
            f"prepared data used by no run: {size(unused)}. To delete: pion data "
            f"{'' if store is None else f'{store} '}--prune"
        )


def prune_data(store: str | None, only: Sequence[str], *, yes: bool, as_json: bool) -> None:
    """Mark what no run uses for deletion, and delete what was marked an hour ago.

    `only` are the beginnings of fingerprints; if it is empty, all unused data is meant. Raises
    BadInput, with nothing marked or deleted, for data that a run uses or that is not there, for a
    HEAD that can't be read, and if neither a person nor `yes` agrees.
    """
    where, clock = open_store(store or DEFAULT_STORE), Clock()
    with before_work("Nothing was deleted."):
        found = list_shared(where, clock)
        chosen = [_chosen(found, where, text) for text in only] or [o for o in found if _may_go(o)]
        if chosen and not yes:
            show("\n".join(map(_in_words, chosen)))
            unused = size(sum(one.unused for one in chosen))
            ask_to_delete(
                f"Delete what no run uses of this, {unused}, in an hour?",
                "--prune would delete this in an hour",
            )
    marked = mark(where, [one.fingerprint for one in chosen], clock)
    deleted, freed = delete_due(where, clock)
    where.flush()
    left = [one for one in list_shared(where, clock) if _is_marked(one)]
    if as_json:
        about = {
            "marked": marked,
            "deleted": deleted,
            "bytes_deleted": freed,
            "waiting": [_to_json(one) for one in left],
        }
        print(json.dumps(about, indent=1))
        return
    if deleted:
        show(f"deleted {size(freed)}: {', '.join(name[:SHOWN] for name in deleted)}")
    if left:
        last = max(_due(one) for one in left)
        show(
            f"marked for deletion: {len(left)}. The first run of this store that ends after "
            f"{moment(last)} deletes it, and so does this command. A run that needs it before "
            "removes the mark."
        )
    if not found:
        show(_nothing_there(where))
    elif not deleted and not left:
        show(f"nothing to delete in {where.url}: its runs use all prepared data")


def _nothing_there(store: Store) -> str:
    return f"no run in {store.url} shares prepared data. {known_runs(store)}"


def _chosen(found: Sequence[Listed], store: Store, text: str) -> Listed:
    """Return the data whose fingerprint begins with `text`, if it may be deleted."""
    matching = [one for one in found if one.fingerprint.startswith(text)]
    if len(matching) != 1:
        known = ", ".join(one.fingerprint[:SHOWN] for one in found) or "none"
        problem = "means several" if matching else "is not there"
        raise BadInput(
            f"--only {text}: this data {problem}. Nothing was deleted. In {store.url}: {known}."
        )
    one = matching[0]
    if one.runs or one.prepared_by is not None:
        by = ", ".join(one.runs) or one.prepared_by
        raise BadInput(
            f"--only {text}: this data is used by {by}. Nothing was deleted. If you no longer need "
            "that run, remove it first, with its weights, reports and checkpoints (pion rm)."
        )
    return one


def _may_go(one: Listed) -> bool:
    """Return whether there is something to delete: also a folder that was replaced by another."""
    return one.unused > 0 and one.prepared_by is None


def _is_marked(one: Listed) -> bool:
    return one.state.delete_after is not None or bool(one.state.unneeded)


def _due(one: Listed) -> float:
    times = [item.not_before for item in one.state.unneeded]
    return max([*times, one.state.delete_after or 0.0])


def _in_words(one: Listed) -> str:
    if one.prepared_by is not None:
        use = f"being prepared by {one.prepared_by}"
    elif one.runs:
        use = f"used by {', '.join(one.runs)}"
        if one.unused:
            use += f"; {size(one.unused)} of it by no run"
    elif _is_marked(one):
        use = f"used by no run; to be deleted after {moment(_due(one))}"
    else:
        use = "used by no run"
    when = moment(one.state.at) if one.state.folder else "unfinished"
    sources = ", ".join(one.state.sources) or "?"
    return f"{one.fingerprint[:SHOWN]}  {size(one.bytes):>8}  {when}  {sources}: {use}"


def _to_json(one: Listed) -> dict[str, Any]:
    return {
        "fingerprint": one.fingerprint,
        "bytes": one.bytes,
        "bytes_unused": one.unused,
        "at": one.state.at if one.state.folder else None,
        "sources": list(one.state.sources),
        "runs": list(one.runs),
        "prepared_by": one.prepared_by,
        "delete_after": _due(one) if _is_marked(one) else None,
    }
