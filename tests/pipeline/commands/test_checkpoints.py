"""`pion checkpoints`: its JSON, and what `--verify` finds."""

import json

from pipeline.commands import checkpoints
from pipeline.state.claim import claim_run
from tests.support.finished_run import make_run
from tests.support.states import someone


def test_checkpoints_as_json_have_the_documented_fields(here, pion):
    make_run(here / "runs")
    rows = json.loads(pion("checkpoints", "demo", "--json")[1])
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("sft", 5),
        ("pretrain", 20),
        ("pretrain", 10),
    ]
    fields = {"stage", "step", "epoch", "at", "bytes", "verified", "model_sha256"}
    assert all(set(row) == fields for row in rows)
    assert all(row["verified"] is True for row in rows)


def test_verifying_finds_a_damaged_checkpoint(here, pion):
    make_run(here / "runs")
    assert pion("checkpoints", "demo", "--verify")[0] == 0
    weights = here / "runs/demo/checkpoints/pretrain/20-1/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, out, _ = pion("checkpoints", "demo", "--verify")
    assert code == 1
    damaged = next(line for line in out.splitlines() if "step      20" in line)
    assert "model.safetensors" in damaged
    code, out, _ = pion("checkpoints", "demo", "--verify", "--json")
    assert [row["verified"] for row in json.loads(out)] == [True, False, True]


def test_a_checkpoint_that_the_run_replaces_meanwhile_is_not_called_damaged(
    here, pion, monkeypatch
):
    run = make_run(here / "runs")
    replaced = "checkpoints/pretrain/10-1"

    def replace(workspace, entry):
        if entry.key == replaced:
            claim_run(run, someone()).commit(lambda head: head.without_checkpoints([replaced], 0.0))
            return "manifest.json is missing"
        return None

    monkeypatch.setattr(checkpoints, "check_entry", replace)
    code, out, _ = pion("checkpoints", "demo", "--verify", "--json")
    assert code == 0
    assert [row["step"] for row in json.loads(out)] == [5, 20]
