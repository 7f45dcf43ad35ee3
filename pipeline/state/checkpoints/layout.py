"""The files in a checkpoint's folder, and the manifest that describes them.

A checkpoint is the folder `checkpoints/<stage>/<step>-<epoch>/` of a run. It has the files named
here and small files such as `config.json`. The manifest, written last, has every file's size and
sha256. A checkpoint counts once HEAD lists it.

Ranks that have the model in parts write a part of both large files each (pion/formats/parts.py).
The manifest of such a checkpoint has another format, which older versions refuse.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput
from pion.formats import parts
from pipeline.state.head import CheckpointEntry
from pipeline.state.record_json import (
    FORMAT,
    MOST_VALUES,
    Count,
    Epoch,
    Time,
    damaged,
    open_record,
    parse,
)
from pipeline.state.workspace import MOST_FILES, Files, listed_files, manifest_of

KINDS = (parts.MODEL, parts.OPTIMIZER)
MODEL = parts.whole_name(parts.MODEL)
OPTIMIZER = parts.whole_name(parts.OPTIMIZER)
STATE = "state.json"
# Rows of metrics that the store did not have when the checkpoint was written. Only checkpoints that
# are written to this machine first have this file.
METRICS = "metrics.jsonl"
MANIFEST = "manifest.json"
# The format of the manifest of a checkpoint in parts.
PARTS_FORMAT = 2


def checkpoint_key(stage: str, step: int, epoch: int) -> str:
    """Return the checkpoint's folder, relative to the run."""
    return f"checkpoints/{stage}/{step}-{epoch}"


@open_record
@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from: what its manifest says besides the files.

    `ancestor` is the key of the checkpoint before it.
    """

    stage: str
    step: Count
    epoch: Epoch
    digest: str
    at: Time
    ancestor: str | None

    @property
    def key(self) -> str:
        return checkpoint_key(self.stage, self.step, self.epoch)

    def manifest(self, files: Files) -> bytes:
        """Return the content of `manifest.json`."""
        in_parts = len(parts.files_of(parts.MODEL, files) or ()) > 1
        version = PARTS_FORMAT if in_parts else FORMAT
        return manifest_of(files, **dataclasses.asdict(self), format=version)

    def entry(self, files: Files) -> CheckpointEntry:
        """Return the entry by which HEAD lists a checkpoint with these files. They have weights."""
        sha256 = model_sha256(files)
        assert sha256 is not None
        return CheckpointEntry(
            **dataclasses.asdict(self),
            key=self.key,
            bytes=sum(size for size, _ in files.values()),
            model_sha256=sha256,
        )


def model_sha256(files: Files) -> str | None:
    """Return what identifies the weights: the hash of their file, or of the hashes of its parts.

    Return None if there are no weights.
    """
    names = parts.files_of(parts.MODEL, files)
    if names is None:
        return None
    hashes = [files[name][1] for name in names]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a checkpoint's manifest.

    Raises `Damaged`, or `BadInput` for another format version.
    """
    return parse(data, where, (FORMAT, PARTS_FORMAT), most=MOST_VALUES + 3 * MOST_FILES)


def files_in(manifest: Mapping[str, Any], where: str) -> Files:
    """Return the files that a checkpoint's manifest lists.

    Raises `Damaged`, also for parts that are not those of as many ranks as there are.
    """
    files = listed_files(manifest, where)
    try:
        counts = {len(found) for kind in KINDS if (found := parts.files_of(kind, files))}
    except BadInput as error:
        raise damaged(where, str(error)) from None
    in_parts = manifest["format"] == PARTS_FORMAT
    if (
        len(counts) > 1
        or (in_parts and counts == {1})
        or (counts and counts != {1} and not in_parts)
    ):
        raise damaged(where, "it does not list a part of each large file for each rank")
    return files
