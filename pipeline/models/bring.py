"""Brings the model of a checkpoint to this machine, without the optimizer's state."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from pion.config.lora import RECORD, is_adapter, read_record
from pion.errors import BadInput
from pipeline.state.checkpoints.layout import MANIFEST, MODEL, OPTIMIZER
from pipeline.state.head import Head
from pipeline.state.record_json import Damaged
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import BASES, bring_files
from pipeline.state.stores import DEFAULT_STORE, Missing, Store, open_store
from pipeline.state.workspace import Files, Workspace, read_files


def bring_model(run: RunState, head: Head, key: str) -> Path:
    """Return the verified folder of the checkpoint `key`, which `head` lists; download it unless it
    is here.

    The base of an adapter is brought too if the run's store has it. Raises BadInput if files are
    missing or damaged, or belong to another checkpoint than the one that `head` lists.
    """
    workspace = Workspace(run.store, run.name)
    problem = _fetch(workspace, head, key)
    record = read_record(workspace.folder(key)) if problem is None else None
    if record is not None and record.base.name.startswith("checkpoints/"):
        _bring_base(run, record.base.name)
    if record is not None and record.base.name.startswith(f"{BASES}/"):
        bring_files(run.store, record.base.name.removeprefix(f"{BASES}/"))
    if problem is not None:
        raise BadInput(
            f"The checkpoint {key} of run {run.name} is listed, but its files in {run.store.url} "
            f"can't be used: {problem}. Check all checkpoints: "
            f"pion checkpoints {run_reference(run.store, run.name)} --verify"
        )
    return workspace.folder(key)


def _bring_base(run: RunState, key: str) -> None:
    head = run.read()
    if head is None or key not in {entry.key for entry in head.checkpoints}:
        raise BadInput(
            f"Run {run.name} has an adapter of its checkpoint {key}, but does not list it. Bring "
            "back that checkpoint, or redo the stage: pion run JOB --redo sft"
        )
    folder = bring_model(run, head, key)
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


def _fetch(workspace: Workspace, head: Head, key: str) -> str | None:
    manifest = f"{workspace.run}/{key}/{MANIFEST}"
    try:
        data = workspace.store.read(manifest)
        files = dict(read_files(data, f"{workspace.store.url}/{manifest}"))
    except Missing:
        return f"{MANIFEST} is missing"
    except Damaged:
        return f"{MANIFEST} is damaged"
    if MODEL not in files:
        return f"{MANIFEST} lists no {MODEL}"
    if not any((e.key, e.model_sha256) == (key, files[MODEL][1]) for e in head.checkpoints):
        return f"{MODEL} differs from the file that HEAD lists"
    files.pop(OPTIMIZER, None)
    return workspace.fetch(key, files)
