"""Where the prepared data of a run is: shared in its store, or in the run's own folder.

Runs of before there was shared data have their own, below `data/<digest>`, for good.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.state.records import SHARED, Head
from pipeline.state.run_state import RunState
from pipeline.state.workspace import Workspace


def own_key(digest: str) -> str:
    """Return the key of a run's own data, and of the folder in which a run prepares data."""
    return f"data/{digest}"


def bring_data(run: RunState, head: Head, part: str, digest: str) -> Path:
    """Return the folder of a part of the run's data, downloaded if it is not on this machine.

    `head` is a HEAD of the run in which `prepare` is finished, and `digest` names its own data.
    Raises `PionError` if the store's copy is missing or damaged.
    """
    if part in head.data:
        return Workspace(run.store, SHARED).bring(head.data[part].removeprefix(f"{SHARED}/"))
    return Workspace(run.store, run.name).bring(own_key(digest))
