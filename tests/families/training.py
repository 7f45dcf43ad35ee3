"""Train each family in processes that are killed, and in pairs of processes.

The processes are forks, because importing torch would take most of their time.
"""

import json
import multiprocessing
import os
import signal
from functools import partial

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from pion.train.side_copy import SideCopy
from pion.train.trainer import ComputePlan, Trainer, TrainSettings, TrainState
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.families.families import FAMILIES
from tests.pion.train.conftest import open_stream
from tests.support.late_streams import LateStreams
from tests.support.ranks import run_ranks
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.whole_state import whole_state

STEPS, KILLED_AFTER = 8, 5
TWO_WORKERS = (3, 6)  # they train the steps after the first number, up to the second
STAGE, DIGEST = "pretrain", "d1"


def trainer(family, folder, *, world_size=1, rank=0):
    data = folder / f"data-{os.getpid()}-{len(list(folder.glob('data-*')))}"
    settings = {"steps": STEPS, "global_batch": 4, "lr": 1e-3, "warmup_steps": 2}
    plan = ComputePlan(
        micro_batch=1, world_size=world_size, threads=1, deterministic=world_size > 1
    )
    return Trainer(
        family.decoder(),
        open_stream(data, conversations=True, config=family.config()),
        TrainSettings(**{**settings, **family.settings()}),
        plan,
        rank=rank,
    )


def train(training, until):
    """Train until that step; return the rows of each step."""
    while training.step < until:
        assert training.train_step()
    return [row["rows"] for row in training.drain_metrics()]


def write_state(state, folder):
    folder.mkdir(parents=True)
    save_file(state.model, folder / "model.safetensors")
    save_file(state.optimizer, folder / "optimizer.safetensors")
    (folder / "meta.json").write_text(json.dumps(state.meta))


def read_state(folder):
    meta = json.loads((folder / "meta.json").read_text())
    tensors = (load_file(folder / f"{part}.safetensors") for part in ("model", "optimizer"))
    return TrainState(*tensors, meta)


def train_and_die(name, folder):
    """Train with a checkpoint at every second step, until SIGKILL during the second save."""
    torch.set_num_threads(1)  # see tests/support/ranks.py
    claim = claim_run(RunState(FileStore(folder / "runs"), name), Owner.me())
    checkpointer = Checkpointer(claim, CheckpointSeries(STAGE, DIGEST, lambda state: {}))
    training = trainer(FAMILIES[name], folder)
    training.side_copy = SideCopy(LateStreams())  # as on a card
    while training.step < KILLED_AFTER:
        train(training, training.step + 1)
        if training.step % 2 == 0:
            state = training.state()
            assert checkpointer.save(state.model, state.optimizer, state.meta, state.side_copy)
        if training.step == 2:
            checkpointer.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def train_as_one_of_two(names, rank, folder):
    """Continue each family's training in a pair of processes, and write what rank 0 ends with."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in names:
        training = trainer(FAMILIES[name], folder, world_size=2, rank=rank)
        training.load(read_state(folder / "before" / name) if rank == 0 else None)
        rows = train(training, TWO_WORKERS[1])
        state = whole_state(training)
        if rank == 0:
            write_state(state, folder / "after" / name)
            (folder / "after" / name / "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def kill_and_pair(folder, to_kill, to_pair):
    """Train families in processes that are killed, then others in a pair of processes.

    `before/<family>` in the folder has the state that the pair continues from.
    """
    # Experts import this when they first compute, and so do deterministic algorithms. It takes
    # seconds in each process.

    fork = multiprocessing.get_context("fork")
    killed = [
        fork.Process(target=train_and_die, args=(name, folder), daemon=True) for name in to_kill
    ]
    for process in killed:
        process.start()
    for process in killed:
        process.join(PATIENCE_SECONDS)
    assert [process.exitcode for process in killed] == [-signal.SIGKILL for _ in killed]
    if to_pair:
        run_ranks(partial(train_as_one_of_two, to_pair), folder, 2)
