"""What a manifest says of a checkpoint, and which manifests are refused."""

import json

import pytest

from pion.errors import BadInput
from pipeline.state.checkpoints.layout import (
    MODEL,
    OPTIMIZER,
    Provenance,
    model_sha256,
    parse_manifest,
)
from pipeline.state.workspace import listed_files

SAVE = Provenance("pretrain", 3, 1, "digest", 0.0, None)
WHERE = "store/manifest.json"
FILES = {MODEL: (7, "a" * 64), OPTIMIZER: (8, "b" * 64)}


def test_a_manifest_lists_its_files_and_their_weights_identify_the_model():
    manifest = parse_manifest(SAVE.manifest(FILES), WHERE)
    assert (manifest["format"], listed_files(manifest, WHERE)) == (1, FILES)
    assert model_sha256(FILES) == "a" * 64
    assert model_sha256({"state.json": (1, "c" * 64)}) is None


def test_a_checkpoint_in_parts_is_refused_with_the_commit_that_reads_it():
    manifest = json.loads(SAVE.manifest({"model-1-of-2.safetensors": (7, "a" * 64)}))
    with pytest.raises(BadInput, match=r"in parts.*git checkout 05c25a9c\. Nothing was changed"):
        parse_manifest(json.dumps(manifest | {"format": 2}).encode(), WHERE)
