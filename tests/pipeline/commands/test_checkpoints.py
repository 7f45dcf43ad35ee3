"""`pion checkpoints`: its JSON, and what `--verify` finds."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run


def test_checkpoints_as_json_have_the_documented_fields(here: Path, pion: Pion) -> None:
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


def test_verifying_finds_a_damaged_checkpoint(here: Path, pion: Pion) -> None:
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
