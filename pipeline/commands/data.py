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
    listed = list_shared(where, Clock())
    if as_json:
        print(json.dumps([_to_json(item) for item in listed], indent=1))
    elif not listed:
        show(_nothing_there(where))
    else:
        show("\n".join(map(_in_words, listed)))
        say_unused(listed, store)


def say_unused(found: Sequence[Listed], store: str | None) -> None:
    """Say how much of the prepared data no run uses, and how to delete it. None: runs/."""
    unused = sum(item.unused for item in found if _may_go(item) and not _is_marked(item))
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
        listed = list_shared(where, clock)
        chosen = [_chosen(listed, where, text) for text in only] or [
            o for o in listed if _may_go(o)
        ]
        if chosen and not yes:
            show("\n".join(map(_in_words, chosen)))
            unused = size(sum(item.unused for item in chosen))
            ask_to_delete(
                f"Delete what no run uses of this, {unused}, in an hour?",
                "--prune would delete this in an hour",
            )
    marked = mark(where, [item.fingerprint for item in chosen], clock)
    deleted, freed = delete_due(where, clock)
    where.flush()
    left = [item for item in list_shared(where, clock) if _is_marked(item)]
    if as_json:
        about = {
            "marked": marked,
            "deleted": deleted,
            "bytes_deleted": freed,
            "waiting": [_to_json(item) for item in left],
        }
        print(json.dumps(about, indent=1))
        return
    if deleted:
        show(f"deleted {size(freed)}: {', '.join(name[:SHOWN] for name in deleted)}")
    if left:
        last = max(_due(item) for item in left)
        show(
            f"marked for deletion: {len(left)}. The first run of this store that ends after "
            f"{moment(last)} deletes it, and so does this command. A run that needs it before "
            "removes the mark."
        )
    if not listed:
        show(_nothing_there(where))
    elif not deleted and not left:
        show(f"nothing to delete in {where.url}: its runs use all prepared data")


def _nothing_there(store: Store) -> str:
    return f"no run in {store.url} shares prepared data. {known_runs(store)}"


def _chosen(found: Sequence[Listed], store: Store, text: str) -> Listed:
    """Return the data whose fingerprint begins with `text`, if it may be deleted."""
    matching = [item for item in found if item.fingerprint.startswith(text)]
    if len(matching) != 1:
        fingerprints = ", ".join(item.fingerprint[:SHOWN] for item in found) or "none"
        problem = "means several" if matching else "is not there"
        raise BadInput(
            f"--only {text}: this data {problem}. Nothing was deleted. In "
            f"{store.url}: {fingerprints}."
        )
    item = matching[0]
    if item.runs or item.prepared_by is not None:
        by = ", ".join(item.runs) or item.prepared_by
        raise BadInput(
            f"--only {text}: this data is used by {by}. Nothing was deleted. If you no longer need "
            "that run, remove it first, with its weights, reports and checkpoints (pion rm)."
        )
    return item


def _may_go(item: Listed) -> bool:
    """Return whether there is something to delete: also a folder that was replaced by another."""
    return item.unused > 0 and item.prepared_by is None


def _is_marked(item: Listed) -> bool:
    return item.state.delete_after is not None or bool(item.state.unneeded)


def _due(shared: Listed) -> float:
    times = [item.not_before for item in shared.state.unneeded]
    return max([*times, shared.state.delete_after or 0.0])


def _in_words(item: Listed) -> str:
    if item.prepared_by is not None:
        use = f"being prepared by {item.prepared_by}"
    elif item.runs:
        use = f"used by {', '.join(item.runs)}"
        if item.unused:
            use += f"; {size(item.unused)} of it by no run"
    elif _is_marked(item):
        use = f"used by no run; to be deleted after {moment(_due(item))}"
    else:
        use = "used by no run"
    when = moment(item.state.at) if item.state.folder else "unfinished"
    sources = ", ".join(item.state.sources) or "?"
    return f"{item.fingerprint[:SHOWN]}  {size(item.bytes):>8}  {when}  {sources}: {use}"


def _to_json(item: Listed) -> dict[str, Any]:
    return {
        "fingerprint": item.fingerprint,
        "bytes": item.bytes,
        "bytes_unused": item.unused,
        "at": item.state.at if item.state.folder else None,
        "sources": list(item.state.sources),
        "runs": list(item.runs),
        "prepared_by": item.prepared_by,
        "delete_after": _due(item) if _is_marked(item) else None,
    }
