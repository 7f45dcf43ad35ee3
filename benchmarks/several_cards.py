"""Spend the first ten minutes on 2 to 8 real cards: do they train as one does, and how fast?

    python -m benchmarks.several_cards [--rehearse]

Each part starts its processes, without Ray, and prints its results. A part that fails
is named, and the next part begins. `--rehearse` runs two ranks over gloo on a CPU, with tiny
models: the numbers then mean nothing.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from pion.config.model_config import ModelConfig
from pion.data.stream import Batch, RowStream
from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer, TrainState

# A rank that waits longer for another one ends.
PATIENCE = timedelta(seconds=45)
# How far weights may be apart in fp32.
APART = 1e-5
STEPS = 10


@dataclass(frozen=True)
class Scale:
    """What is trained: on cards, or in a rehearsal."""

    device: str
    compared: tuple[str, ...]  # presets, in fp32
    timed: tuple[str, ...]  # presets, in bf16
    seq_len: int
    megabytes: tuple[int, ...]
    smaller: dict[str, Any]  # fields of all presets


CARDS = Scale(
    "cuda",
    ("pion-nano", "tachyon-tiny", "daisy-pico"),
    ("pion2-max-small", "pion2-large"),
    1024,
    (25, 400),
    {},
)
REHEARSAL = Scale(
    "cpu",
    ("pion-nano",),
    ("pion-nano",),
    16,
    (1,),
    {"vocab_size": 128, "n_layers": 1, "d_model": 32, "n_heads": 2, "n_kv_heads": 1, "d_ff": 64},
)


class Rows:
    """Endless rows of random ids, the same in every process."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        self._ids, self._shape = vocab_size, (seq_len,)

    def batch(self, indices: Any) -> Batch:
        draws = (torch.Generator().manual_seed(int(index)) for index in indices)
        tokens = torch.stack(
            [torch.randint(0, self._ids, self._shape, generator=draw) for draw in draws]
        )
        return Batch(tokens, tokens.roll(-1, dims=1), None, None)


@dataclass(frozen=True)
class Rank:
    """One process of a group of `ranks`."""

    rank: int
    ranks: int
    scale: Scale

    @property
    def device(self) -> torch.device:
        cuda = self.scale.device == "cuda"
        return torch.device("cuda", self.rank) if cuda else torch.device("cpu")

    def trainer(self, preset: str, rows: int, **plan: Any) -> Trainer:
        torch.manual_seed(0)
        config = ModelConfig.preset(preset, seq_len=self.scale.seq_len, **self.scale.smaller)
        settings = TrainSettings(steps=10**6, global_batch=rows, lr=1e-3, optimizer="muon")
        plan.update(micro_batch=2, threads=1, device=str(self.device))
        return Trainer(
            Decoder(config),
            cast(RowStream, Rows(config.vocab_size, self.scale.seq_len)),
            settings,
            ComputePlan(world_size=self.ranks, **plan),
            rank=self.rank,
        )

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the seconds that the work takes once, after a first time."""
        wait = torch.cuda.synchronize if self.scale.device == "cuda" else time.perf_counter
        work()
        wait()
        started = time.perf_counter()
        for _ in range(STEPS):
            work()
        wait()
        return (time.perf_counter() - started) / STEPS


def whole(trainer: Trainer) -> TrainState:
    """Return a copy of the state on the CPU, with all tensors whole. Every rank calls this."""
    state = trainer.state()
    live = state.model | state.optimizer
    tensors = {name: torch.empty_like(each, device="cpu") for name, each in live.items()}
    for name, each in live.items():
        tensors[name] = tensors[name] if each.is_meta else each.cpu()
    every: list[Any] = [[(p.name, p.start, p.values.cpu()) for p in state.pieces]]
    if trainer.plan.world_size > 1:
        every *= trainer.plan.world_size
        dist.all_gather_object(every, every[0])
    for name, start, values in itertools.chain(*every):
        tensors[name].view(-1)[start : start + values.numel()] = values
    return TrainState(
        {name: tensors[name] for name in state.model},
        {name: tensors[name] for name in state.optimizer},
        state.meta,
    )


# ---------------------------------------------------------------- what the ranks do


def links(rank: Rank) -> dict[str, float]:
    """Return GB/s of the bus, by what is exchanged."""
    found = {}
    for megabytes in rank.scale.megabytes:
        sent = torch.zeros(megabytes * 2**18, device=rank.device)
        got = sent.new_empty(rank.ranks * sent.numel())
        share = sent.nbytes * (rank.ranks - 1) / 1e9
        summed = rank.seconds(partial(dist.all_reduce, sent))
        gathered = rank.seconds(partial(dist.all_gather_into_tensor, got, sent))
        found[f"all-reduce of {megabytes} MB"] = 2 * share / rank.ranks / summed
        found[f"all-gather of {megabytes} MB"] = share / gathered
    return found


def follow(rank: Rank, preset: str, rows: int, path: Path, sharded: bool, resumed: bool) -> None:
    """Train, or continue from what `path` has; rank 0 writes the state to the path."""
    trainer = rank.trainer(preset, rows, deterministic=True, sharded=sharded)
    if resumed:
        trainer.load(TrainState(*torch.load(path)) if rank.rank == 0 else None)
    for _ in range(0 if resumed else STEPS):
        trainer.train_step()
    state = whole(trainer)
    if rank.rank == 0:
        torch.save((state.model, state.optimizer, state.meta), path)
    trainer.close()


def speed(rank: Rank, preset: str, rows: int, sharded: bool) -> float:
    """Return tokens/s of all ranks, each of which has so many rows."""
    trainer = rank.trainer(preset, rows * rank.ranks, dtype="bfloat16", sharded=sharded)
    seconds = rank.seconds(trainer.train_step)
    trainer.close()
    return rows * rank.ranks * rank.scale.seq_len / seconds


def die(rank: Rank, preset: str) -> None:
    """Kill the last rank after some steps, and train on."""
    trainer = rank.trainer(preset, 2 * rank.ranks)
    for step in range(2 * STEPS):
        trainer.train_step()
        if (step, rank.rank) == (STEPS, rank.ranks - 1):
            os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- what starts them


def work_of(rank: Rank, work: Callable[..., Any], asked: tuple[Any, ...], folder: Path) -> None:
    """Meet the other ranks, work, and write the answer of this rank."""
    if rank.scale.device == "cuda":
        torch.cuda.set_device(rank.device)
    if rank.ranks > 1:
        meet, backend = f"file://{folder}/meet", "nccl" if rank.scale.device == "cuda" else "gloo"
        dist.init_process_group(
            backend, init_method=meet, rank=rank.rank, world_size=rank.ranks, timeout=PATIENCE
        )
    (folder / f"{rank.rank}.json").write_text(json.dumps(work(rank, *asked)))


def together(scale: Scale, ranks: int, work: Callable[..., Any], *asked: Any) -> Any:
    """Let so many processes do `work(rank, *asked)`; return the answer of rank 0.

    Raises RuntimeError with the exit codes unless all processes succeed.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        group = [
            spawn.Process(target=work_of, args=(Rank(n, ranks, scale), work, asked, Path(folder)))
            for n in range(ranks)
        ]
        for process in group:
            process.start()
        for process in group:
            process.join()
        codes = [process.exitcode for process in group]
        if any(codes):
            raise RuntimeError(f"exit codes by rank (negative: a signal) {codes}")
        return json.loads((Path(folder) / "0.json").read_text("utf-8"))


@contextmanager
def part(name: str) -> Iterator[None]:
    """Name a part of the ten minutes; go on if it fails."""
    started = time.perf_counter()
    try:
        yield
    except Exception as error:
        print(f"FAILED: {name}: {type(error).__name__}: {error}", flush=True)
    print(f"--- {name}: {time.perf_counter() - started:.0f} s", flush=True)


def compare(scale: Scale, ranks: int, preset: str, folder: Path) -> None:
    """Print how far ranks, whole and divided, end from one process, and whether they resume."""
    states, rows = dict[str, Any](), 2 * ranks + 1
    ways = [
        ("one", 1, False),
        *((f"{how}{n}", ranks, how == "sharded") for how in ("whole", "sharded") for n in (1, 2)),
    ]
    for name, count, sharded in ways:
        path = folder / f"{preset}-{name}"
        together(scale, count, follow, preset, rows, path, sharded, False)
        states[name] = torch.load(path)
    for how in ("whole", "sharded"):
        once, again = states[f"{how}1"], states[f"{how}2"]
        off = max(float((once[0][n] - t).abs().max()) for n, t in states["one"][0].items())
        together(scale, ranks // 2, follow, preset, rows, folder / f"{preset}-{how}1", False, True)
        resumed = torch.load(folder / f"{preset}-{how}1")
        print(
            f"{preset} {how}: {'as one' if off <= APART else 'NOT as one'}, apart {off:.1e}; twice "
            f"{'equal' if same(once, again) else 'NOT EQUAL'}; on {ranks // 2} ranks "
            f"{'the same state' if same(once, resumed) else 'ANOTHER STATE'}",
            flush=True,
        )


def same(one: Any, other: Any) -> bool:
    """Return whether two states have the same bits."""
    return all(
        torch.equal(each, b[name]) for a, b in zip(one[:2], other) for name, each in a.items()
    )


def main() -> None:
    """Run all parts."""
    scale = REHEARSAL if "--rehearse" in sys.argv[1:] else CARDS
    ranks = 2 if scale is REHEARSAL else torch.cuda.device_count()
    if ranks < 2:
        sys.exit("there are fewer than two cards here")
    print(f"torch {torch.__version__}, {ranks} ranks on {scale.device}", flush=True)
    with part("links"):
        for name, rate in together(scale, ranks, links).items():
            print(f"{name}: {rate:.1f} GB/s of the bus", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for preset in scale.compared:
            with part(f"{preset} in fp32"):
                compare(scale, ranks, preset, Path(folder))
    for preset in scale.timed:
        with part(f"speed of {preset}"):
            alone = together(scale, 1, speed, preset, 8, False)
            for sharded in (False, True):
                rate = together(scale, ranks, speed, preset, 8, sharded)
                print(
                    f"{preset} {'divided' if sharded else 'whole'}: {rate:,.0f} tokens/s, "
                    f"{rate / ranks / alone:.0%} of one a card",
                    flush=True,
                )
    with part("a rank is killed: this part must fail, within a minute of the last step"):
        together(scale, ranks, die, scale.timed[0])


if __name__ == "__main__":
    main()
