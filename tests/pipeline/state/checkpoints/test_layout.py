"""What a manifest says of a checkpoint whose large files are whole, or in parts of ranks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pion.errors import BadInput
from pipeline.state.checkpoints.layout import (
    MODEL,
    OPTIMIZER,
    Provenance,
    files_in,
    model_sha256,
    parse_manifest,
)
from pipeline.state.record_json import Damaged
from pipeline.state.workspace import Files

SAVE = Provenance("pretrain", 3, 1, "digest", 0.0, None)
WHERE = "store/manifest.json"


def parts(count: int, kinds: tuple[str, ...] = ("model", "optimizer")) -> dict[str, Any]:
    """Return the files of so many ranks."""
    return {
        f"{kind}-{rank}-of-{count}.safetensors": (rank, f"{rank:064x}")
        for kind in kinds
        for rank in range(1, count + 1)
    }


WHOLE: Files = {MODEL: (7, "a" * 64), OPTIMIZER: (8, "b" * 64)}


def read(manifest: dict[str, Any]) -> Files:
    return files_in(parse_manifest(json.dumps(manifest).encode(), WHERE), WHERE)


@pytest.mark.parametrize(("files", "version"), [(WHOLE, 1), (parts(2), 2), (parts(500), 2)])
def test_a_manifest_has_the_format_of_its_files(files: Files, version: int) -> None:
    assert json.loads(SAVE.manifest(files))["format"] == version
    assert read(json.loads(SAVE.manifest(files))) == files


def test_a_version_that_reads_whole_files_refuses_parts_by_the_number() -> None:
    from pipeline.state.workspace import read_files

    with pytest.raises(BadInput, match="has format version 2, but this pion reads version 1"):
        read_files(SAVE.manifest(parts(2)), WHERE)


def test_weights_are_identified_by_their_file_or_by_all_parts_in_order() -> None:
    assert model_sha256(WHOLE) == "a" * 64
    two = parts(2)
    swapped = dict(two)
    one, other = (name for name in two if name.startswith("model"))
    swapped[one], swapped[other] = two[other], two[one]
    assert len({model_sha256(files) for files in (two, swapped, parts(3), WHOLE)}) == 4
    assert model_sha256({"state.json": (1, "c" * 64)}) is None


@pytest.mark.parametrize(
    ("files", "changes", "reason"),
    [
        (parts(2), {"format": 1}, "it does not list a part of each large file for each rank"),
        (WHOLE, {"format": 2}, "it does not list a part of each large file for each rank"),
        (parts(1), {"format": 2}, "it does not list a part of each large file for each rank"),
        (parts(2, ("model",)) | parts(3, ("optimizer",)), {}, "it does not list a part of each"),
        (parts(2) | {OPTIMIZER: (1, "c" * 64)}, {}, "it does not list a part of each large file"),
        (parts(3, ("model",)) | parts(2), {}, "it has model files of 2 and 3 ranks"),
        ({"model-2-of-2.safetensors": (1, "c" * 64)}, {}, r"model-1-of-2\.safetensors is missing"),
        ({"model-1-of-0.safetensors": (1, "c" * 64)}, {}, "claims that there are 0 parts"),
        ({f"model-1-of-{10**9}.safetensors": (1, "c" * 64)}, {}, "there are 1,000,000,000 parts"),
    ],
)
def test_files_that_no_ranks_have_written_are_damage(
    files: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    listed = {name: {"size": size, "sha256": sha} for name, (size, sha) in files.items()}
    with pytest.raises(Damaged, match=reason):
        read({"format": 2, "files": listed, **changes})
