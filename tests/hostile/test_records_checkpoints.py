"""A manifest or a state.json with bad values is bad input, and the file is named."""

import dataclasses
import json

import pytest

from pion.errors import BadInput
from pion.train.train_state import rng_states
from pipeline.state.checkpoints.layout import MANIFEST, STATE
from pipeline.state.record_json import Damaged
from pipeline.state.workspace import MOST_DATA_FILES, MOST_FILES, read_files
from tests.hostile.hostile_run import ends_with, path_of, pion, replace
from tests.hostile.record_attacks import DEPTH, ESCAPE, nested
from tests.hostile.records import FILE, LISTED, MODEL_STATE, SFT

pytestmark = pytest.mark.usefixtures("restored")


# ---------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\nb", ".hidden", "", "a//b", ESCAPE, "-rf"]
)
def test_a_name_that_no_store_has_is_damaged(name):
    data = json.dumps({**LISTED, "files": {name: FILE}}).encode()
    with pytest.raises(Damaged, match=r"^store/manifest\.json is damaged: files\."):
        read_files(data, "store/manifest.json")


@pytest.mark.parametrize("sha256", ["../" * 21 + "x", "0" * 63, "G" * 64, "A" * 64, "0" * 65])
def test_a_hash_is_64_hexadecimal_digits(sha256):
    data = json.dumps({**LISTED, "files": {"a": {**FILE, "sha256": sha256}}}).encode()
    with pytest.raises(Damaged, match=r"files\.a\.sha256 is not a possible value"):
        read_files(data, "store/manifest.json")


def test_a_manifest_lists_a_bounded_number_of_files():
    def listing(count):
        return json.dumps({"format": 1, "files": {f"f{n}": FILE for n in range(count)}}).encode()

    assert len(read_files(listing(MOST_FILES // 2), "manifest.json")) == MOST_FILES // 2
    with pytest.raises(
        Damaged, match=r"manifest\.json is damaged: it lists 1,025 files, and 1,024"
    ):
        read_files(listing(MOST_FILES + 1), "manifest.json")
    assert len(read_files(listing(5000), "files.json", MOST_DATA_FILES)) == 5000


MANIFESTS = {
    "deep": nested(DEPTH).encode(),
    "20,000 files": json.dumps(
        {**LISTED, "files": {f"f{n}": FILE for n in range(20_000)}}
    ).encode(),
    "no model": json.dumps({**LISTED, "files": {"state.json": FILE}}).encode(),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_commands_name_a_damaged_manifest(what, run, tmp_path, capsys):
    replace(run, f"{SFT}/{MANIFEST}", MANIFESTS[what])
    output = ends_with(2, capsys, "generate", f"{run.url}@sft", "--prompt", "a")
    assert SFT in output
    assert MANIFEST in output
    output = ends_with(1, capsys, "checkpoints", run.url, "--verify")
    assert "verified now" in output, "the other checkpoint is good"
    output = ends_with(2, capsys, "fork", run.url, f"{tmp_path}/fork", "--stage", "sft")
    assert "Nothing was forked" in output


# ---------------------------------------------------------------- state.json


def test_a_random_state_that_is_none_is_bad_input():
    import torch

    from pion.train.train_state import set_rng_states

    device = torch.device("cpu")
    before = rng_states(device)
    for text in ("AAAA", "x", "", "\x00é"):
        with pytest.raises(BadInput, match="random state of cpu is damaged"):
            set_rng_states({"cpu": text}, device)
    assert rng_states(device) == before


@pytest.mark.parametrize("key", ["/etc/passwd", "../../../../etc/passwd", "..", "a/../b", "~/x"])
def test_the_tokenizer_of_a_state_is_inside_the_run(run, key, capsys):
    folder = path_of(run, SFT)
    (folder / STATE).write_text(json.dumps({**MODEL_STATE, "tokenizer": key}))
    output = ends_with(2, capsys, "generate", str(folder), "--prompt", "a")
    assert "state.json is damaged: tokenizer is not a possible value" in output


# ---------------------------------------------------------------- HEAD and its checkpoints


def test_a_stage_whose_checkpoint_is_not_listed_is_not_forked(run, tmp_path, capsys):
    head = run.read()
    record = dataclasses.replace(head.stages["pretrain"], checkpoint="checkpoints/pretrain/99-1")
    replace(run, "HEAD.json", dataclasses.replace(head, stages={"pretrain": record}).to_json())
    output = ends_with(2, capsys, "fork", run.url, f"{tmp_path}/fork", "--stage", "sft")
    assert "its HEAD does not list checkpoints/pretrain/99-1" in output


def test_a_stage_of_another_name_has_no_checkpoint_to_fork_at(run, tmp_path, capsys):
    head = run.read()
    entries = tuple(dataclasses.replace(entry, stage="x") for entry in head.checkpoints)
    replace(run, "HEAD.json", dataclasses.replace(head, checkpoints=entries).to_json())
    output = ends_with(2, capsys, "fork", run.url, f"{tmp_path}/fork")
    assert "has no checkpoint" in output
    assert pion(capsys, "status", run.url)[0] == 0
