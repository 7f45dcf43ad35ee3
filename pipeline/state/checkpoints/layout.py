"""The files in a checkpoint's folder, and the manifest that describes them.

A checkpoint is the folder `checkpoints/<stage>/<step>-<epoch>/` of a run. It has the files named
here and small files such as `config.json`. The manifest, written last, has every file's size and
sha256. A checkpoint counts once HEAD lists it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pion.formats.weights import WEIGHTS
from pipeline.state.head import CheckpointEntry
from pipeline.state.record_json import (
    MOST_VALUES,
    Count,
    Epoch,
    Time,
    open_record,
    parse,
)
from pipeline.state.workspace import MOST_FILES, Files, manifest_of

MODEL, OPTIMIZER = WEIGHTS, "optimizer.safetensors"
STATE = "state.json"
# Rows of metrics that the store did not have when the checkpoint was written. Only checkpoints that
# are written to this machine first have this file.
METRICS = "metrics.jsonl"
MANIFEST = "manifest.json"


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
        return manifest_of(files, **dataclasses.asdict(self))

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
    """Return the hash of the weights' file, or None if there are no weights."""
    return files[MODEL][1] if MODEL in files else None


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a checkpoint's manifest.

    Raises `Damaged`, or `BadInput` for another format version.
    """
    return parse(data, where, most=MOST_VALUES + 3 * MOST_FILES)
