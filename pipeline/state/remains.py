"""What is left in a store of a run whose HEAD.json is gone: a new run must not overwrite it.

HEAD.json is the first file of a run, so work without it means that the file was lost, that only a
part of the run was copied, or that a `pion fork` was interrupted.
"""

from __future__ import annotations

import re

from pion.errors import BadInput
from pipeline.console.formats import size
from pipeline.state.run_state import RunState
from pipeline.state.stores import DEFAULT_STORE, Entry, open_store

# The folders that only an owner of the run, or a fork, writes. A watcher writes events, too, of
# machines that were lost before any of them owned the run.
WORK = ("checkpoints", "metrics", "owner")
# Of so many checkpoints, the names are shown.
SHOWN = 4
# The names of all files that a run keeps in its folder, apart from HEAD.json.
_OURS = re.compile(
    r"checkpoints/[a-z]+/\d+-\d+/.+|metrics/[a-z]+/\d+/.+|owner/\d+\.json|events/\d+/.+"
    r"|requests/[0-9a-f]+\.json|jobs/[0-9a-f]+\.yaml|stages/[a-z]+/[0-9a-f]+(-parts/.+|\.json)"
    r"|data/[0-9a-f]{4,}/.+|bases/[0-9a-f]+\.json|(rental|deadline|watcher)\.json|report\.html"
    r"|probe-[0-9a-f]+|\.(lock|tmp)-.+"
)


def remains(run: RunState, *, but_of_epoch: int | None = None) -> list[Entry]:
    """Return the work that lies in the store under the name of `run`, which has no HEAD.json.

    Work of the epoch `but_of_epoch` does not count, except for an owner's heartbeat.
    """
    # Any folder can be named as a run, so a list of all could be a walk through the disk.
    return [
        entry
        for folder in WORK
        for entry in run.store.list(run.key(f"{folder}/"))
        if _OURS.fullmatch(path := entry.key.removeprefix(run.key("")))
        and (folder == "owner" or _epoch(path) != str(but_of_epoch))
    ]


def refuse_other_files(run: RunState) -> None:
    """Raise BadInput if a file in the folder of a run without HEAD.json has no name of Pion's."""
    names = [entry.key.removeprefix(run.key("")) for entry in run.store.list(run.key(""))]
    here = run.store.local_path(run.name)
    hidden = [] if here is None else [p.name for p in here.iterdir() if p.name.startswith(".")]
    for name in (*names, *sorted(hidden)):
        if not _OURS.fullmatch(name):
            raise BadInput(
                f"{run.url} has no HEAD.json, and {name} there was not written by Pion. Move it "
                "elsewhere, or delete the folder yourself."
            )


def refuse_remains(run: RunState, *, but_of_epoch: int | None = None) -> None:
    """Raise BadInput if there is work of a run that has no HEAD.json; see `remains`."""
    found = remains(run, but_of_epoch=but_of_epoch)
    if found:
        raise BadInput(f"{describe_remains(run, found)} Nothing was started or overwritten.")


def describe_remains(run: RunState, found: list[Entry]) -> str:
    """Return what lies there, and the ways out, for a person."""
    paths = [entry.key.removeprefix(run.key("")) for entry in found]
    saved = [path.split("/")[1:3] for path in paths if path.startswith("checkpoints/")]
    names = sorted({"/".join(parts) for parts in saved})
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    others = sorted({path.partition("/")[0] for path in paths} - {"checkpoints"})
    words = [f"checkpoints {', '.join(names[:SHOWN])}{more}"] if names else []
    called = run.name if run.store.url == open_store(DEFAULT_STORE).url else run.url
    return (
        f"{run.url} has no HEAD.json, but work of a run lies there: "
        f"{', '.join(words + others)} ({size(sum(entry.size for entry in found))}). Put HEAD.json "
        "back from a backup, or from where this run was copied; if a `pion fork` was interrupted, "
        f"the same command completes it. Or delete what is left: pion rm {called}. Or use another "
        "name."
    )


def _epoch(path: str) -> str | None:
    """Return the epoch in checkpoints/STAGE/STEP-EPOCH/…, metrics/STAGE/EPOCH/…, events/EPOCH/…"""
    found = re.match(r"checkpoints/[^/]+/\d+-(\d+)/|metrics/[^/]+/(\d+)/|events/(\d+)/", path)
    return next(filter(None, found.groups()), None) if found else None
