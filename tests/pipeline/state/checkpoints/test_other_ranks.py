"""Several ranks save together what one rank would save, and any number of ranks resumes from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pion.train.side_copy import SideCopy
from pion.train.trainer import ComputePlan, Trainer, TrainSettings, TrainState
from pipeline.state.checkpoints import memory_file
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.layout import OPTIMIZER
from pipeline.state.checkpoints.other_ranks import CopiesForRankZero, OtherRanks
from pipeline.state.checkpoints.restore import load_folder, newest_good
from pipeline.state.checkpoints.snapshot import Snapshot, map_extents
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from tests.pion.train.conftest import open_stream, tiny_decoder
from tests.support.in_process_uploader import InProcessUploader
from tests.support.late_streams import LateStreams
from tests.support.ranks import run_ranks
from tests.support.whole_state import whole_state

# Where the run is continued, one after the other. The first number is of a process alone.
HOPS = (1, 3, 2, 1)
STEPS_BETWEEN = 2


class Saver:
    """One rank that trains and saves. `save` is called by all ranks at once."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        plan = ComputePlan(
            micro_batch=1, world_size=world_size, threads=1, deterministic=world_size > 1
        )
        settings = TrainSettings(steps=50, global_batch=6, lr=1e-2, optimizer="muon")
        stream = open_stream(folder / f"data-{os.getpid()}-{world_size}")
        self.trainer = Trainer(tiny_decoder(rank), stream, settings, plan, rank=rank)
        self.trainer.side_copy = SideCopy(LateStreams())  # as on a card
        pieces = self.trainer.pieces()
        self.others = OtherRanks(pieces) if rank == 0 and world_size > 1 else None
        self.copies = CopiesForRankZero(pieces, self.trainer.side_copy) if rank else None
        if rank == 0:
            self.run = RunState(FileStore(folder / "runs"), "run")
            self.claim = claim_run(self.run, Owner.me())
            uploader: Any = InProcessUploader(self.claim.store)
            uploader.snapshot.others = self.others
            series = CheckpointSeries("pretrain", "d1", {})
            self.checkpointer = Checkpointer(self.claim, series, uploader=uploader)

    def load(self) -> None:
        """Continue from the newest checkpoint."""
        state = None
        if self.rank == 0:
            head = self.run.read()
            assert head is not None
            found = newest_good(Workspace(self.claim.store, "run"), head, "pretrain", "d1")
            assert found.folder is not None
            saved = load_folder(found.folder)
            state = TrainState(saved.model, saved.optimizer, saved.state)
        self.trainer.load(state)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            assert self.trainer.train_step()

    def begin_save(self) -> None:
        if self.copies is not None:
            self.copies.follow()
        elif self.others is None:
            self._save()
        else:
            with self.others.listening():
                self._save()

    def _save(self) -> None:
        state = self.trainer.state()
        assert self.checkpointer.save(
            state.model, state.optimizer, state.meta, state.side_copy, state.pieces
        )

    def close(self) -> None:
        if self.copies is not None:
            self.copies.close()
        else:
            self.checkpointer.close()
            self.claim.release()
        if self.others is not None:
            self.others.close()
        self.trainer.close()


def contents(state: TrainState) -> bytes:
    """Return the optimizer's file of a process that has all of the state."""
    memory = Snapshot()
    memory.take(state.model, state.optimizer, {})
    content = bytes(map_extents(memory.fd, memory.extents)[OPTIMIZER])
    memory.close()
    return content


def same(one: TrainState, other: TrainState) -> bool:
    return all(
        mine.keys() == others.keys() and all(torch.equal(mine[n], others[n]) for n in mine)
        for mine, others in ((one.model, other.model), (one.optimizer, other.optimizer))
    )


def hop(folder: Path, rank: int, world_size: int, number: int) -> dict[str, Any]:
    """Continue from the newest checkpoint, train, and save next to the following step."""
    with closing(Saver(folder, rank, world_size)) as saver:
        found: dict[str, Any] = {}
        if number:
            saver.load()
            before = whole_state(saver.trainer)
            if rank == 0:
                found["resumed"] = same(before, torch.load(folder / "state.pt", weights_only=False))
        saver.train(STEPS_BETWEEN)
        state = whole_state(saver.trainer)
        saver.begin_save()
        saver.train(1)  # what is saved must not have this step
        if rank == 0:
            torch.save(state, folder / "state.pt")
            saver.checkpointer.wait()
            entry = saver.checkpointer.last
            assert entry is not None
            saved = (folder / "runs" / "run" / entry.key / OPTIMIZER).read_bytes()
            stats = saver.checkpointer.stats
            found["as one rank"] = saved == contents(state)
            found["stall"] = stats.stall_seconds
            found["copied later"] = (stats.copy_seconds or 0) > stats.stall_seconds
        else:
            assert saver.copies is not None
            found["in rank 0's memory"] = saver.copies.in_rank_0
        return found


@contextmanager
def group(folder: Path, rank: int, world_size: int) -> Iterator[None]:
    if world_size == 1:
        yield
        return
    meet = f"file://{folder}/meet{world_size}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    yield
    dist.destroy_process_group()


def hops(rank: int, folder: Path) -> None:
    """Run one process, as a rank of all groups that have so many ranks. Rank 2 is elsewhere."""
    if rank == 2:
        memory_file._machine = lambda: "another machine"
    results = {}
    for number, world_size in enumerate(HOPS):
        if rank < world_size:
            with group(folder, rank, world_size):
                results[number] = hop(folder, rank, world_size, number)
    (folder / f"{rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process has seen, by hop."""
    folder = tmp_path_factory.mktemp("hops")
    run_ranks(hops, folder, max(HOPS))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(max(HOPS))]


def test_any_number_of_ranks_resumes_the_exact_state(seen: list[dict[str, Any]]) -> None:
    assert [hop.get("resumed", True) for hop in seen[0].values()] == [True] * len(HOPS)


def test_the_file_has_the_bytes_of_one_rank(seen: list[dict[str, Any]]) -> None:
    assert [hop["as one rank"] for hop in seen[0].values()] == [True] * len(HOPS)


def test_a_rank_of_the_same_machine_copies_into_rank_0s_memory(seen: list[dict[str, Any]]) -> None:
    assert [hop["in rank 0's memory"] for hop in seen[1].values()] == [True, True]


def test_a_rank_of_another_machine_sends_its_pieces(seen: list[dict[str, Any]]) -> None:
    assert [hop["in rank 0's memory"] for hop in seen[2].values()] == [False]


def test_training_waits_only_until_the_copies_have_begun(seen: list[dict[str, Any]]) -> None:
    for hop in seen[0].values():
        assert hop["stall"] > 0
        assert hop["copied later"]
