"""Processes that train together, for tests; and the error of each of them if one fails."""

import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pion.train.hardware import peak_flops
from tests.support.waiting import PATIENCE_SECONDS

# The others see that a rank has gone as soon as its connections close. A rank that computes alone
# may not notice.
OTHERS_SECONDS = 30.0


def ask_ranks(work: Callable[[int, Path], Any], folder: Path, count: int) -> list[Any]:
    """Return what `work(rank, folder)` returns in each of `count` ranks that have met, as JSON.

    Raises as `run_ranks` does.
    """
    run_ranks(partial(_answer, work, count), folder, count)
    return [json.loads((folder / f"answer{rank}.json").read_text()) for rank in range(count)]


def _answer(work: Callable[[int, Path], Any], count: int, rank: int, folder: Path) -> None:
    meet(rank, count, folder / "meet")
    answer = work(rank, folder)
    (folder / f"answer{rank}.json").write_text(json.dumps(answer))
    dist.destroy_process_group()


def meet(rank: int, count: int, path: Path) -> None:
    """Wait for the other ranks of a group, which meet by this file."""
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=count)


def run_ranks(work: Callable[[int, Path], None], folder: Path, count: int) -> None:
    """Let `count` forks of this process do `work(rank, folder)`, and wait for them.

    Raises AssertionError with the errors of all ranks, the first one first. The error of the first
    says what happened. The others usually say only that their connection to it was closed.
    torch.multiprocessing shows one error: that of the rank that ended first, which may be another.
    """
    # Each rank that trains would measure it.
    peak_flops(torch.device("cpu"), "float32")
    fork = multiprocessing.get_context("fork")
    ranks: list[BaseProcess] = [
        fork.Process(target=_reported, args=(work, rank, folder), daemon=True)
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    if _ended(ranks, time.monotonic() + 4 * PATIENCE_SECONDS):  # ranks may train all families
        return
    codes = {rank: process.exitcode for rank, process in enumerate(ranks)}
    reports = [json.loads(path.read_text()) for path in folder.glob("error*.json")]
    said = "\n".join(f"rank {rank}:\n{error}" for _, rank, error in sorted(reports))
    raise AssertionError(f"exit codes by rank (negative: a signal) {codes}\n{said}")


def _ended(ranks: list[BaseProcess], end: float) -> bool:
    """Wait until `end`, and not long for the others if one fails. Return whether all succeeded."""
    running = {process.sentinel: process for process in ranks}
    try:
        while running and (left := end - time.monotonic()) > 0:
            for sentinel in wait(list(running), left):
                process = running.pop(int(sentinel))  # type: ignore[call-overload]
                process.join()
                if process.exitcode:
                    end = min(end, time.monotonic() + OTHERS_SECONDS)
    finally:
        for process in running.values():
            process.kill()
            process.join()
    return all(process.exitcode == 0 for process in ranks)


def _reported(work: Callable[[int, Path], None], rank: int, folder: Path) -> None:
    # By default gloo asks which address the name of this machine has.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    # A fork has none of the threads by which OpenMP shares out large tensors, and would wait for
    # them if an earlier test of this process has made some.
    torch.set_num_threads(1)
    try:
        work(rank, folder)
    except BaseException:
        # The clock is that of the machine. Times of files are too coarse.
        report = [time.monotonic_ns(), rank, traceback.format_exc()]
        (folder / f"error{rank}.json").write_text(json.dumps(report))
        raise
