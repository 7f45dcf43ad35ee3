"""What a manifest says of a checkpoint, and which manifests are refused."""

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
