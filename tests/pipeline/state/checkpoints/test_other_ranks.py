"""Several ranks save together what one rank would save, and any number of ranks resumes from it.

The ranks have the model whole, or each has a part of it.
"""

import errno
import json
import os
import signal
from contextlib import closing, contextmanager
from functools import partial
from itertools import product
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from pion.train.side_copy import SideCopy
from pion.train.trainer import TrainState
from pipeline.state.checkpoints import memory_file
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.layout import MODEL, OPTIMIZER
from pipeline.state.checkpoints.other_ranks import CopiesForRankZero, OtherRanks
from pipeline.state.checkpoints.restore import load_folder, newest_good
from pipeline.state.checkpoints.snapshot import Snapshot, map_extents
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from pipeline.state.workspace import Workspace
from tests.families.families import FAMILIES
from tests.support.in_process_uploader import InProcessUploader
from tests.support.late_streams import LateStreams
from tests.support.ranks import run_ranks
from tests.support.sharded_trainers import make, rows_of
from tests.support.whole_state import same, whole_state

# How many processes continue the run, one group after the other. The first is a process alone.
HOPS = (1, 3, 2, 1)
MANY_HOPS = (1, 8, 2)
STEPS_BETWEEN = 2
# What is trained by `make`: a family, and changes.
SHARDED = {"name": "pion", "optimizer": "muon", "sharded": True}
CASES = {
    "whole": (SHARDED | {"sharded": False}, HOPS),
    "sharded": (SHARDED, HOPS),
    "many": (SHARDED, MANY_HOPS),
    **{
        f"{family} by {optimizer}, sharded": (
            {"name": family, "optimizer": optimizer, "sharded": True},
            (2, 3, 1, 2),
        )
        for family, optimizer in (*product(FAMILIES, ("adamw", "muon")), ("pion", "adamw8bit"))
    },
}
# Soak has all.
QUICK = ("sharded",)


class Saver:
    """One rank that trains and saves. `save` is called by all ranks at once."""

    def __init__(self, folder, rank, world_size, trained=SHARDED):
        self.rank, self.world_size = rank, world_size
        folder.mkdir(exist_ok=True)
        changes = trained | {"sharded": trained["sharded"] and world_size > 1}
        self.trainer = make(
            stream=rows_of(trained["name"], folder / f"data-{os.getpid()}"),
            world_size=world_size,
            rank=rank,
            **{"steps": 50, "global_batch": 9, "lr": 1e-2, "deterministic": world_size > 1},
            **changes,
        )
        self.trainer.side_copy = SideCopy(LateStreams())  # as on a card
        pieces = self.trainer.pieces()
        self.others = OtherRanks(pieces) if rank == 0 and world_size > 1 else None
        self.copies = CopiesForRankZero(pieces, self.trainer.side_copy) if rank else None
        if rank == 0:
            self.run = RunState(FileStore(folder / "runs"), "run")
            self.claim = claim_run(self.run, Owner.me())
            uploader = InProcessUploader(self.claim.store)
            uploader.snapshot.others = self.others
            series = CheckpointSeries("pretrain", "d1", lambda state: {})
            self.checkpointer = Checkpointer(self.claim, series, uploader=uploader)

    def load(self):
        """Continue from the newest checkpoint."""
        state = None
        if self.rank == 0:
            head = self.run.read()
            found = newest_good(Workspace(self.claim.store, "run"), head, "pretrain", "d1")
            saved = load_folder(found.folder)
            state = TrainState(saved.model, saved.optimizer, saved.state)
        self.trainer.load(state)

    def train(self, steps):
        for _ in range(steps):
            assert self.trainer.train_step()

    def begin_save(self):
        if self.copies is not None:
            self.copies.follow()
        elif self.others is None:
            self._save()
        else:
            with self.others.listening():
                self._save()

    def save(self):
        """Save, and wait until rank 0 has listed the checkpoint."""
        self.begin_save()
        if self.rank == 0:
            self.checkpointer.wait()
            assert self.checkpointer.last.step == self.trainer.step

    def _save(self):
        state = self.trainer.state()
        assert self.checkpointer.save(
            state.model, state.optimizer, state.meta, state.side_copy, state.pieces
        )

    def close(self):
        if self.copies is not None:
            self.copies.close()
        else:
            self.checkpointer.close()
            self.claim.release()
        if self.others is not None:
            self.others.close()
        self.trainer.close()


def contents(state):
    """Return the large files of a process that has all of the state."""
    memory = Snapshot()
    memory.take(state.model, state.optimizer, {})
    files = map_extents(memory.fd, memory.extents)
    content = {name: bytes(files[name]) for name in (MODEL, OPTIMIZER)}
    memory.close()
    return content


def hop(folder, rank, world_size, trained):
    """Continue from the newest checkpoint, train, and save next to the following step."""
    with closing(Saver(folder, rank, world_size, trained)) as saver:
        found = {}
        if (folder / "state.pt").exists():
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
            checkpoint = folder / "runs" / "run" / entry.key
            stats = saver.checkpointer.stats
            found["as one rank"] = all(
                (checkpoint / name).read_bytes() == content
                for name, content in contents(state).items()
            )
            found["stall"] = stats.stall_seconds
            found["copied later"] = (stats.copy_seconds or 0) > stats.stall_seconds
        else:
            found["in rank 0's memory"] = saver.copies.in_rank_0
        return found


@contextmanager
def group(folder, rank, world_size, name=""):
    if world_size == 1:
        yield
        return
    meet = f"file://{folder}/meet{world_size}{name}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    yield
    dist.destroy_process_group()


def hops(rank, folder):
    """Run one process, as a rank of all groups that have so many ranks. Rank 2 is elsewhere."""
    if rank == 2:
        memory_file.machine = lambda: "another machine"
    results = {}
    trained, sizes = json.loads((folder / "hops.json").read_text())
    for number, world_size in enumerate(sizes):
        if rank < world_size:
            with group(folder, rank, world_size, f"-{number}"):
                results[number] = hop(folder, rank, world_size, trained)
    (folder / f"{rank}.json").write_text(json.dumps(results))


@pytest.fixture(
    scope="module",
    params=[
        case if case in QUICK else pytest.param(case, marks=pytest.mark.soak) for case in CASES
    ],
)
def seen(request, tmp_path_factory):
    """What each process has seen, by hop."""
    folder = tmp_path_factory.mktemp("hops")
    ranks = max(CASES[request.param][1])
    (folder / "hops.json").write_text(json.dumps(CASES[request.param]))
    run_ranks(hops, folder, ranks)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.slow
def test_any_number_of_ranks_resumes_the_exact_state(seen):
    assert [hop["resumed"] for hop in list(seen[0].values())[1:]] == [True] * (len(seen[0]) - 1)


def test_the_file_has_the_bytes_of_one_rank(seen):
    assert all(hop["as one rank"] for hop in seen[0].values())


def test_a_rank_of_the_same_machine_copies_into_rank_0s_memory(seen):
    assert len(seen[1]) >= 2
    assert all(hop["in rank 0's memory"] for rank in (seen[1], *seen[3:]) for hop in rank.values())


def test_a_rank_of_another_machine_sends_its_pieces(seen):
    assert [hop["in rank 0's memory"] for hop in seen[2].values()] == [False]


def test_training_waits_only_until_the_copies_have_begun(seen):
    for hop in seen[0].values():
        assert hop["stall"] > 0
        assert hop["copied later"]


# ---------------------------------------------------------------- what goes wrong


def train_to_the_end(rank, folder, *, name, resume):
    """Train up to step 6, with a save after step 2, and write what rank 0 ends with."""
    with group(folder, rank, 2, name), closing(Saver(folder / name, rank, 2)) as saver:
        if resume:
            saver.load()
            assert saver.trainer.step == 2
        else:
            saver.train(2)
        saver.save()
        saver.train(6 - saver.trainer.step)
        state = whole_state(saver.trainer)
        if rank == 0:
            torch.save(state, folder / f"{name}.pt")


def die_while_saving(rank, folder):
    """Save after step 2. Rank 1 is killed once rank 0 asks it to copy the state after step 4."""
    with group(folder, rank, 2, "dies"), closing(Saver(folder / "run", rank, 2)) as saver:
        saver.train(2)
        saver.save()
        saver.train(2)
        if saver.copies is not None:
            saver.copies._copy = lambda: os.kill(os.getpid(), signal.SIGKILL)
        saver.begin_save()
        saver.checkpointer.wait()


@pytest.mark.slow
def test_after_sigkill_in_a_save_two_ranks_end_with_the_bits_of_an_unbroken_run(tmp_path):
    run_ranks(partial(train_to_the_end, name="unbroken", resume=False), tmp_path, 2)
    with pytest.raises(AssertionError) as died:
        run_ranks(die_while_saving, tmp_path, 2)
    assert "{0: 1, 1: -9}" in str(died.value)
    assert "RuntimeError" in str(died.value)  # of rank 0, which did not wait forever
    run_ranks(partial(train_to_the_end, name="run", resume=True), tmp_path, 2)
    one, other = (torch.load(tmp_path / f"{n}.pt", weights_only=False) for n in ("unbroken", "run"))
    assert one.meta["step"] == other.meta["step"] == 6
    assert same(one, other)


def refuse(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class BrokenCard(LateStreams):
    def synchronize(self):
        raise RuntimeError("CUDA error: unspecified launch failure")


def saves_that_fail(rank, folder):
    """Rank 0 gets no memory for its first save. In the next save, the card of rank 1 fails. The
    save after that finds a card that works."""
    with group(folder, rank, 2, "fails"), closing(Saver(folder / "run", rank, 2)) as saver:
        saver.train(1)
        if rank == 0:
            refusing = mock.patch.object(os, "posix_fallocate", refuse)
            with refusing, pytest.raises(StoreError):
                saver.begin_save()
        else:
            saver.begin_save()  # returns: rank 0 goes on
            saver.trainer.side_copy._streams = BrokenCard()
        saver.train(1)
        saver.begin_save()
        if rank == 0:
            with pytest.raises(RuntimeError, match="worker 1 could not copy its part"):
                saver.checkpointer.wait()
            assert saver.checkpointer.last is None
        else:
            saver.trainer.side_copy = saver.copies._side_copy = SideCopy(LateStreams())
        saver.train(1)
        saver.save()


def test_a_save_that_fails_on_one_rank_is_never_listed_and_the_ranks_go_on(tmp_path):
    run_ranks(saves_that_fail, tmp_path, 2)
