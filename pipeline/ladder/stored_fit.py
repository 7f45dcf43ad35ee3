"""Read the fit of a ladder from the store that keeps the ladder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput
from pipeline.job.digest import Difference, Digests, differences
from pipeline.ladder.fit import Fit
from pipeline.state.record_json import damaged, parse_record
from pipeline.state.stores import Missing, Store
from pipeline.state.stores.base import is_run_name

LADDERS = "_ladders"
# Settings that decide which text is predicted and how it is counted, but for those that decide only
# the order of its rows, or how much of it there is.
_OF_THE_TEXT = ("data.", "tokenizer.")
_ORDER_OR_AMOUNT = ("data.window", "data.shard_rows", ".max_documents")


@dataclass(frozen=True)
class Asked:
    """How a person named the ladder, and a sentence that says what happens without it."""

    key: str = "--ladder"
    without: str = "Without --ladder, sizes follow a rule, and no loss is predicted."


@dataclass(frozen=True)
class StoredFit:
    """A fit, and the settings that the runs of its ladder have in common, by dotted key."""

    fit: Fit
    settings: Mapping[str, Any]

    def other_text(self, digests: Digests) -> list[Difference]:
        """Return the settings of the data and the tokenizer in which the ladder's runs differ from
        a job with these digests: bits per byte of other text are not comparable."""
        if not self.settings:  # a record that does not say
            return []
        own = digests.inputs["data.pretrain"] | digests.inputs["pretrain"]
        found = differences(dict(self.settings), own, digests.before)
        return [
            one
            for one in found
            if one.path.startswith(_OF_THE_TEXT) and not one.path.endswith(_ORDER_OR_AMOUNT)
        ]


def read_stored_fit(store: Store, name: str, asked: Asked = Asked()) -> StoredFit:
    """Return the fit of the ladder `name`, and the settings of its runs.

    Raises BadInput if there is no such ladder, if it has no fit yet, and for a record that can't be
    read; and StoreError.
    """
    if not is_run_name(name):
        raise BadInput(f"{asked.key} {name!r:.200}: a ladder has a name, such as small.")
    key = f"{LADDERS}/{name}.json"
    try:
        data = store.read(key)
    except Missing:
        raise BadInput(
            f"there is no ladder {name!r} in {store.url}{_those_there(store)} To make one: pion "
            f"ladder JOB, with a job of this name and store. {asked.without}"
        ) from None
    where = f"{store.url}/{key}"
    record = parse_record(data, where)
    found, settings = record.get("fit"), record.get("settings", {})
    if found is None:
        raise BadInput(
            f"the ladder {name!r} in {store.url} is not finished, so it predicts nothing yet. To "
            f"finish it, run the same `pion ladder` command again. {asked.without}"
        )
    if not isinstance(found, dict):
        raise damaged(where, "fit should be an object")
    if not isinstance(settings, dict):
        raise damaged(where, "settings should be an object")
    return StoredFit(Fit.from_record(found, where), settings)


def _those_there(store: Store) -> str:
    """Return the end of a sentence, with the names of ladders that are there."""
    keys = sorted(entry.key for entry in store.list(f"{LADDERS}/"))
    names = [key.removeprefix(f"{LADDERS}/") for key in keys]
    names = [name.removesuffix(".json") for name in names if "/" not in name]
    if not names:
        return "."
    return f", which has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}."
