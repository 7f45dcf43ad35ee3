"""Find the newest good save of a stage, in the store or on this machine, and read it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import PionError
from pion.formats.weights import read_tensors
from pion.untrusted import read_file
from pipeline.state.checkpoints.layout import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    Provenance,
    model_sha256,
    parse_manifest,
)
from pipeline.state.head import CheckpointEntry, Head
from pipeline.state.record_json import Damaged, build, parse_record
from pipeline.state.run_state import RunState
from pipeline.state.stores import Missing
from pipeline.state.workspace import Files, Workspace, listed_files

if TYPE_CHECKING:
    import torch


# Why a checkpoint can't be used whose files are those of another one.
OTHER_WEIGHTS = "its weights differ from those that HEAD lists"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's content. Tensors are on the CPU, mapped from the files in `folder`."""

    folder: Path
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class FoundCheckpoint:
    """The good checkpoint to resume from, on this machine, and why newer ones were skipped.

    `listed` says whether HEAD lists the checkpoint. An unlisted checkpoint is a save that this
    machine made and could not commit.
    """

    entry: CheckpointEntry | None
    folder: Path | None
    skipped: list[str]
    listed: bool = True


def newest_good(workspace: Workspace, head: Head, stage: str, digest: str) -> FoundCheckpoint:
    """Return the stage's newest checkpoint of that digest whose sizes and hashes are right.

    A checkpoint that HEAD lists is downloaded unless it is here. A save of this machine that HEAD
    does not list counts only if it descends from HEAD's newest checkpoint, and no later epoch
    resumed from an earlier step: then nobody has trained further or restarted the stage. Returns
    `FoundCheckpoint(None, None, [])` if the stage has no checkpoint.

    Raises `StoreError` when the store is down, and `BadInput` for a checkpoint of another format
    version. Raises `PionError` when checkpoints are listed but none is good: only a person may
    decide to start over.
    """
    listed = [e for e in head.checkpoints if (e.stage, e.digest) == (stage, digest)]
    newest = listed[0] if listed else None
    for entry in _unlisted(workspace, head, stage, digest, newest):
        return FoundCheckpoint(entry, workspace.folder(entry.key), [], listed=False)
    skipped: list[str] = []
    for entry in listed:
        problem = check_entry(workspace, entry)
        if problem is None:
            return FoundCheckpoint(entry, workspace.folder(entry.key), skipped)
        skipped.append(f"Skipped checkpoint {entry.key}: {problem}.")
    if skipped:
        raise PionError(
            f"None of the checkpoints of {stage} in {workspace.store.url}/{workspace.run} is good. "
            f"{' '.join(skipped)} Nothing was changed. To train {stage} again from its start, use "
            f"--redo {stage}."
        )
    return FoundCheckpoint(None, None, [])


def refuse_other_formats(run: RunState, head: Head) -> None:
    """Raise BadInput if HEAD's newest checkpoint has another format version.

    Other damage is reported when the checkpoint is restored. Raises `StoreError`.
    """
    for entry in head.checkpoints[:1]:
        key = run.key(f"{entry.key}/{MANIFEST}")
        with contextlib.suppress(Missing, Damaged):
            parse_manifest(run.store.read(key), f"{run.store.url}/{key}")


def check_entry(
    workspace: Workspace, entry: CheckpointEntry, *, optimizer: bool = True, once: bool = False
) -> str | None:
    """Return why a listed checkpoint can't be used (a file is missing, cut short or changed).

    Returns None for a good checkpoint. Its files are then in the workspace, those of the optimizer
    only if asked for. With `once`, files that were right before and have not changed since are not
    hashed again. Raises like `newest_good`.
    """
    where = f"{workspace.run}/{entry.key}/{MANIFEST}"
    url = f"{workspace.store.url}/{where}"
    try:
        files = listed_files(parse_manifest(workspace.store.read(where), url), url)
    except Missing:
        return f"{MANIFEST} is missing"
    except Damaged:
        return f"{MANIFEST} is damaged"
    sha256 = model_sha256(files)
    if sha256 is None:
        return f"{MANIFEST} lists no weights"
    if sha256 != entry.model_sha256:
        return OTHER_WEIGHTS
    wanted = {name: about for name, about in files.items() if optimizer or name != OPTIMIZER}
    return workspace.fetch(entry.key, wanted, once=once)


def load_folder(folder: Path) -> Loaded:
    """Read a checkpoint's folder without verifying it. Raises `PionError` if a file can't be
    read."""
    try:
        state = parse_record(read_file(folder / STATE), str(folder / STATE))
        model, optimizer = read_tensors(folder / MODEL), read_tensors(folder / OPTIMIZER)
        return Loaded(folder, model, optimizer, state)
    except (OSError, ValueError, PionError) as error:
        raise PionError(f"{folder} is not a complete checkpoint: {error}") from error


def _unlisted(
    workspace: Workspace, head: Head, stage: str, digest: str, newest: CheckpointEntry | None
) -> Iterator[CheckpointEntry]:
    """Yield good saves of this machine that descend from `newest` and were not rolled back, the
    latest step first."""
    if not workspace.remote:
        return
    saves: list[tuple[CheckpointEntry, Files]] = []
    for path in workspace.folder(f"checkpoints/{stage}").glob(f"*/{MANIFEST}"):
        try:
            data = read_file(path)
            manifest = parse_manifest(data, str(path))
            save = build(Provenance, manifest, str(path))
            files = listed_files(manifest, str(path))
        except (OSError, PionError):
            continue
        farther = newest is None or save.step > newest.step
        descends = farther and save.ancestor == (newest.key if newest else None)
        # A later epoch has resumed from a step before this save.
        rewound = any(
            epoch > save.epoch and steps.get(save.stage, save.step) < save.step
            for epoch, steps in head.restores.items()
        )
        if save.digest == digest and descends and not rewound and model_sha256(files):
            saves.append((save.entry(files), files))
    for entry, files in sorted(saves, key=lambda item: -item[0].step):
        if workspace.local_problem(entry.key, files) is None:
            yield entry
