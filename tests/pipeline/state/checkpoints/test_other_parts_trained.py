"""A model of each family that any number of ranks saves in parts, and any number continues."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pion.train.side_copy import SideCopy
from pion.train.trainer import SavedState, TrainState
from pipeline.state.checkpoints.restore import load_folder, newest_good
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from tests.families.families import FAMILIES
from tests.pipeline.state.checkpoints.test_other_parts import DIGEST, RUN, STAGE, Saver
from tests.support.late_streams import LateStreams
from tests.support.ranks import run_ranks
from tests.support.sharded_trainers import make, rows_of, train
from tests.support.whole_state import same, whole_state

pytestmark = pytest.mark.soak

# How many processes continue the run, one group after the other. A process alone has all, so it
# writes whole files.
HOPS = (2, 3, 1, 2)


def hop(rank: int, count: int, family: str, folder: Path, optimizer: str) -> dict[str, Any]:
    """Continue from the newest checkpoint, train, and save next to the following step."""
    rows = folder / f"rows-{rank}"
    rows.mkdir(exist_ok=True)
    trainer = make(family, rows_of(family, rows), world_size=count, rank=rank, optimizer=optimizer)
    run, found = RunState(FileStore(folder / "runs"), RUN), {}
    head = run.read()
    if head is not None:
        place = newest_good(Workspace(run.store, RUN), head, STAGE, DIGEST).folder
        assert place is not None
        saved = load_folder(place)
        if count > 1:
            trainer.load(SavedState(saved.saved_model, saved.saved_optimizer, saved.state))
        else:
            trainer.load(TrainState(saved.model, saved.optimizer, saved.state))
        before = whole_state(trainer)
        if rank == 0:
            found["resumed"] = same(before, torch.load(folder / "state.pt", weights_only=False))
    train(trainer, 2)
    state = whole_state(trainer)
    if rank == 0:
        torch.save(state, folder / "state.pt")
    trainer.side_copy = SideCopy(LateStreams())  # as on a card
    with closing(Saver(folder, rank, count, trainer=trainer)) as saver:
        saver.begin(trainer.step)
        train(trainer, 1)  # what is saved must not have this step
        if saver.own is None:
            saver.checkpointer.wait()
            assert saver.checkpointer.last is not None
            found["step"] = saver.checkpointer.last.step
    trainer.close()
    return found


def hops(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    for family, optimizer in json.loads((folder / "families.json").read_text()):
        own = folder / f"{family}-{optimizer}"
        own.mkdir(exist_ok=True)
        for number, count in enumerate(HOPS):
            meet = f"file://{own}/meet{number}"
            if rank < count:
                dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=count)
                found = hop(rank, count, family, own, optimizer)
                results.setdefault(own.name, []).append(found)
                dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(results))


def test_every_family_hops_between_numbers_of_ranks_with_exact_bits(tmp_path: Path) -> None:
    each = [(family, optimizer) for family in FAMILIES for optimizer in ("adamw", "muon")]
    (tmp_path / "families.json").write_text(json.dumps(each))
    run_ranks(hops, tmp_path, max(HOPS))
    results = json.loads((tmp_path / "0.json").read_text())
    assert len(results) == len(each)
    for name, found in results.items():
        assert [one.get("resumed") for one in found] == [None, True, True, True], name
        assert [one["step"] for one in found] == [2, 4, 6, 8], name
        files = {
            tuple(sorted(path.name for path in folder.glob("model*.safetensors")))
            for folder in (tmp_path / name / "runs" / RUN / "checkpoints" / STAGE).iterdir()
        }
        two, three = (
            tuple(f"model-{rank}-of-{count}.safetensors" for rank in range(1, count + 1))
            for count in (2, 3)
        )
        assert files <= {two, three, ("model.safetensors",)}
        assert {two, ("model.safetensors",)} <= files, name
