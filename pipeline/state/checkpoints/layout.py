"""The files in a checkpoint's folder, and the manifest that describes them.

A checkpoint is the folder `checkpoints/<stage>/<step>-<epoch>/` of a run. It has the files named
here and small files such as `config.json`. The manifest, written last, has every file's size and
sha256. A checkpoint counts once HEAD lists it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.state.head import CheckpointEntry
from pipeline.state.record_json import FORMAT, Count, Epoch, Time, build, closed_record, to_json
from pipeline.state.workspace import Files

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
# Rows of metrics that the store did not have when the checkpoint was written. Only checkpoints that
# are written to this machine first have this file.
METRICS = "metrics.jsonl"
MANIFEST = "manifest.json"


def checkpoint_key(stage: str, step: int, epoch: int) -> str:
    """Return the checkpoint's folder, relative to the run."""
    return f"checkpoints/{stage}/{step}-{epoch}"


@closed_record
@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from. `ancestor` is the key of the checkpoint before it."""

    stage: str
    step: Count
    epoch: Epoch
    digest: str
    at: Time
    ancestor: str | None

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], where: str) -> Provenance:
        """Return a manifest's fields other than the files. Raises `Damaged`."""
        names = {field.name for field in dataclasses.fields(cls)}
        return build(cls, {n: value for n, value in manifest.items() if n in names}, where)

    @property
    def key(self) -> str:
        return checkpoint_key(self.stage, self.step, self.epoch)

    def manifest(self, files: Files) -> bytes:
        """Return the content of `manifest.json`."""
        listed = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in files.items()}
        manifest = {**dataclasses.asdict(self), "format": FORMAT, "files": listed}
        return to_json(manifest).encode()

    def entry(self, files: Files) -> CheckpointEntry:
        """Return the entry by which HEAD lists a checkpoint with these files."""
        return CheckpointEntry(
            **dataclasses.asdict(self),
            key=self.key,
            bytes=sum(size for size, _ in files.values()),
            model_sha256=files[MODEL][1],
        )
