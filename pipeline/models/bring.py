"""Brings the model of a checkpoint to this machine, without the optimizer's state."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from pion.config.lora import RECORD, is_adapter, read_record
from pion.errors import BadInput
from pipeline.state.checkpoints.hold import hold
from pipeline.state.checkpoints.restore import OTHER_WEIGHTS, check_entry
from pipeline.state.head import Head
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import BASES, bring_base
from pipeline.state.stores import DEFAULT_STORE, Store, open_store
from pipeline.state.workspace import Files, Workspace


def bring_model(run: RunState, head: Head, key: str, *, once: bool = False) -> Path:
    """Return the verified folder of the checkpoint `key`, which `head` lists; download it unless it
    is here.

    The base of an adapter is brought too if the run's store has it. With `once`, files that were
    right before and have not changed since are not hashed again. Raises BadInput if files are
    missing or damaged, or belong to another checkpoint than the one that `head` lists, and if the
    run has replaced the checkpoint since.
    """
    workspace = Workspace(run.store, run.name)
    hold(run.store, run.key(key))
    problem: str | None = OTHER_WEIGHTS
    for entry in head.checkpoints:
        if entry.key == key:
            problem = check_entry(workspace, entry, optimizer=False, once=once)
    if problem is not None:
        refuse_replaced(run, key)
        raise BadInput(
            f"The checkpoint {key} of run {run.name} is listed, but its files in {run.store.url} "
            f"can't be used: {problem}. Check all checkpoints: "
            f"pion checkpoints {run_reference(run.store, run.name)} --verify"
        )
    record = read_record(workspace.folder(key))
    base = "" if record is None else record.base.name
    if base.startswith("checkpoints/"):
        _bring_base(run, base, once)
    if base.startswith(f"{BASES}/"):
        bring_base(run.store, base.removeprefix(f"{BASES}/"))
    return workspace.folder(key)


def refuse_replaced(run: RunState, key: str) -> None:
    """Raise BadInput if HEAD has ceased to list the checkpoint `key`. Raises `StoreError`."""
    head = run.read()
    if head is None or key not in head.listed():
        raise BadInput(
            f"The run {run.name} has replaced its checkpoint {key} by a newer one while this "
            "command read it. Nothing was changed. Run the same command again."
        )


def _bring_base(run: RunState, key: str, once: bool) -> None:
    head = run.read()
    if head is None or key not in {entry.key for entry in head.checkpoints}:
        raise BadInput(
            f"Run {run.name} has an adapter of its checkpoint {key}, but does not list it. Bring "
            "back that checkpoint, or redo the stage: pion run JOB --redo sft"
        )
    folder = bring_model(run, head, key, once=once)
    if is_adapter(folder):
        raise BadInput(f"{folder} is an adapter, but should be the base of one")


def with_renamed_base(
    folder: Path, files: Files, keys: Mapping[str, str]
) -> tuple[Files, dict[str, bytes]]:
    """Return the listing of a checkpoint in a run where the checkpoints `keys` have new keys.

    Also return the content of the files that are not those in `folder`: adapter.json, if it names
    one of these checkpoints as the base. Raises BadInput.
    """
    record = read_record(folder)
    if record is None or record.base.name not in keys:
        return files, {}
    base = dataclasses.replace(record.base, name=keys[record.base.name])
    content = dataclasses.replace(record, base=base).to_json()
    sha256 = hashlib.sha256(content).hexdigest()
    return {**files, RECORD: (len(content), sha256)}, {RECORD: content}


def run_reference(store: Store, name: str) -> str:
    """Return what to call a run on the command line: in the default store, only its name."""
    return name if store.url == open_store(DEFAULT_STORE).url else f"{store.url}/{name}"
