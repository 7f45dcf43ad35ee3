"""A small run in a folder, whose files tests replace by hostile files."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from pipeline.state.claim import claim_run
from pipeline.state.head import (
    CheckpointEntry,
    ClaimRecord,
    Head,
    SkippedRows,
    Spent,
    StageRecord,
    Trash,
    data_key,
)
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, Store
from tests.support.finished_run import tiny_model, tiny_tokenizer
from tests.support.jobs import tiny_dict
from tests.support.light_run import save_checkpoint

NAME = "demo"
JOB = "0123"
NOW = 1_700_000_000.0
CALIBRATION: dict[str, Any] = {
    "ece": 0.023,
    "ece_sem": 0.002,
    "brier": 0.151,
    "brier_sem": 0.002,
    "confidence": 0.312,
    "confidence_sem": 0.003,
    "accuracy": 0.305,
    "accuracy_sem": 0.004,
    "near_70": {"confidence": 0.7, "accuracy": 0.62, "accuracy_sem": 0.01, "tokens": 812},
    "tokens": 37485,
}


def full_head() -> Head:
    """Return a HEAD that has one of everything."""
    owner = Owner("s" * 32, 7, 8, "pid:[9]", "boot", "host", "launch", "c" * 40, "d" * 12)
    owner = dataclasses.replace(owner, versions={"torch": "2.15.0"}, started_at=NOW)
    pretrain, sft = "checkpoints/pretrain/10-1", "checkpoints/sft/5-1"

    def entry(stage: str, step: int, key: str) -> CheckpointEntry:
        metrics = {"held_out_loss": 2.5}
        sha256 = "0" * 64
        return CheckpointEntry(stage, step, 1, "digest", key, NOW, 99, sha256, pretrain, metrics)

    return Head(
        epoch=1,
        owner=owner,
        job=JOB,
        stages={
            "pretrain": StageRecord("digest", NOW, pretrain, {"steps": 10}),
            "evaluate": StageRecord("digest", NOW, sft, {"sft": {"loss": 2.5}}),
        },
        checkpoints=(entry("sft", 5, sft), entry("pretrain", 10, pretrain)),
        restores={1: {"sft": 5}},
        claims=(ClaimRecord(1, NOW, owner),),
        committed_epoch=1,
        spent=Spent(1.0, 0.5, NOW),
        forked=pretrain,
        skipped={"sft": (SkippedRows(0, 4, 2, 1, "digest", "a loss of nan", NOW),)},
        trash=(Trash("checkpoints/sft/1-1", NOW),),
        write_ids=("w" * 32,),
        data={"pretrain": data_key("f" * 64, "a" * 32)},
    )


def as_json(record: Any) -> Any:
    """Return a record as the JSON that a store has of it."""
    return json.loads(json.dumps(dataclasses.asdict(record)))


def make_hostile_run(folder: Path) -> RunState:
    """Make a run in the store `folder` with a recorded job and two checkpoints of a tiny model.

    Pretraining is done. Nobody owns the run.
    """
    return make_run_in(FileStore(folder))


def make_run_in(store: Store) -> RunState:
    """Make the run of `make_hostile_run` in any store."""
    run = RunState(store, NAME)
    claim = claim_run(run, Owner.me())
    run.write_job(JOB, yaml.safe_dump(tiny_dict(name=NAME)))
    claim.set_job(JOB)
    weights, texts = _tiny_checkpoint()
    first = save_checkpoint(claim, "pretrain", 10, "digest", weights, texts)
    claim.finish_stage("pretrain", "digest", {"steps": 10}, first.key)
    save_checkpoint(claim, "sft", 5, "digest", weights, texts)
    claim.release()
    return run


@functools.cache
def _tiny_checkpoint() -> tuple[bytes, dict[str, str]]:
    """Return the weights of a tiny model, and the small files next to them."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(Path(scratch) / "tokenizer.json")
        text = (Path(scratch) / "tokenizer.json").read_text()
    config = json.dumps(model.config.to_dict())
    return save(model.state_dict()), {"config.json": config, "tokenizer.json": text}


def path_of(run: RunState, path: str) -> Path:
    """Return where the run's file is."""
    found = run.store.local_path(run.key(path))
    assert found is not None
    return found


def replace(run: RunState, path: str, data: bytes) -> None:
    """Replace one of the run's files by these bytes."""
    found = path_of(run, path)
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_bytes(data)
