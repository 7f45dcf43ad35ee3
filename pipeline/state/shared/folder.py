"""The folders of prepared data: share one, bring one to this machine, delete one.

Shared data is in a folder of the store, and then `state.json` names it.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from pion.errors import PionError
from pion.files import unwritable
from pipeline.machine.kill_points import mark
from pipeline.state.head import SHARED, Head
from pipeline.state.record_json import damaged
from pipeline.state.run_state import RunState
from pipeline.state.shared.records import Writer, read_state, swap_state
from pipeline.state.stores import Store
from pipeline.state.stores.local import sync_folder
from pipeline.state.workspace import Progress, Workspace, files_below, link_or_copy

# What shared data of a reference model is described by. Other data has dataset.json.
REFERENCE_FILE = "reference.json"
# In this file, between the hash of a base and that of LoRA's additions to it.
WITH_ADDITIONS = " with additions "


class Overtaken(PionError):
    """The folder was to be deleted, because this process showed no sign of life. Begin again."""


def complete(
    run: RunState,
    fingerprint: str,
    writer: Writer,
    files: Path,
    sources: tuple[str, ...],
    progress: Progress = lambda done, total: None,
) -> str:
    """Share the data in the folder `files`, finished for `run`; return the id of the folder to use.

    It is another writer's if that one was faster. Who is recorded as the writer by now does not
    matter: the first who finishes has won. Raises Overtaken if pruning has marked the folder, and
    StoreError; after that, this may be called again with the same arguments.
    """
    store = run.store
    workspace = Workspace(store, SHARED)
    key = f"{fingerprint}/{writer.folder}"
    size = link_files(files, workspace.folder(key))
    workspace.keep(key, progress)
    while True:
        state, version = read_state(store, fingerprint)
        if state.folder == writer.folder:  # an earlier call did it
            return writer.folder
        if not writer.is_claim_of(state.writer):
            # Our folder stays: an earlier call may have shared it, and a run may use it by now.
            # Pruning finds out.
            if state.folder not in (None, writer.replaces):
                return state.folder
            if state.was_unneeded(writer.folder):
                raise Overtaken(
                    f"the prepared data {fingerprint[:12]} was to be deleted, since this process "
                    "showed no sign of life"
                )
        finished = dataclasses.replace(
            state,
            folder=writer.folder,
            bytes=size,
            at=run.clock.now(),
            sources=sources,
            writer=None,
            delete_after=None,
        )
        mark("shard")
        if swap_state(store, fingerprint, finished, version):
            mark("shard")
            return writer.folder


def delete_folder(store: Store, fingerprint: str, folder: str) -> None:
    """Delete the files of a folder that no run may use, and records of its rows, here and in the
    store. Raises StoreError.

    On a store that collects writes into commits, the next commit deletes them.
    """
    for entry in store.list(f"{SHARED}/{fingerprint}/"):
        if folder in entry.key:
            store.delete(entry.key)
    # The copy on this machine; and hidden files, which an interrupted process left in a store that
    # is a folder.
    shutil.rmtree(Workspace(store, SHARED).folder(f"{fingerprint}/{folder}"), ignore_errors=True)


def own_key(digest: str) -> str:
    """Return the key of the folder in which a run prepares data."""
    return f"data/{digest}"


def bring_data(run: RunState, head: Head, part: str) -> Path:
    """Return the folder of a part of the run's data, downloaded if it is not on this machine, but
    for shards to train on, which a ShardCache fetches.

    `head` is a HEAD of the run in which `prepare` is finished. Raises `PionError` if the store's
    copy is missing or damaged, and `Damaged` if HEAD lists none.
    """
    if part not in head.data:
        raise damaged(f"{run.url}/HEAD.json", f"prepare is finished, but there is no {part} data")
    key = head.data[part].removeprefix(f"{SHARED}/")
    return Workspace(run.store, SHARED).bring(key, shards=False)


def link_files(source: Path, target: Path) -> int:
    """Put the files below `source` below `target` too; return their size in bytes.

    Raises BadInput if that is not possible.
    """
    size = 0
    try:
        for path in files_below(source):
            to = target / path.relative_to(source)
            size += path.stat().st_size
            to.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, to)
        for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
            sync_folder(folder)
    except OSError as error:
        raise unwritable(target, error) from None
    return size
