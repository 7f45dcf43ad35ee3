"""If a rank of a test fails, the message has the errors of all ranks, and the first one first."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.ranks import run_ranks
from tests.support.waiting import wait_until


def succeed(rank: int, folder: Path) -> None:
    (folder / str(rank)).touch()


def fail_after_rank_1(rank: int, folder: Path) -> None:
    first = folder / "error1.json"
    if rank == 0:
        wait_until(lambda: first.exists() and first.read_text(), "rank 1 has failed")
    raise ValueError("the connection was closed" if rank == 0 else "the cause")


def be_killed(rank: int, folder: Path) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_every_rank_does_its_work(tmp_path: Path) -> None:
    run_ranks(succeed, tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_the_error_of_each_rank_is_told_and_the_first_one_first(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failed:
        run_ranks(fail_after_rank_1, tmp_path, 2)
    message = str(failed.value)
    first, then = "\nValueError: the cause", "\nValueError: the connection was closed"
    assert message.index(first) < message.index(then)


def test_a_rank_that_was_killed_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"\{0: 0, 1: -9\}"):
        run_ranks(be_killed, tmp_path, 2)
