"""A store in a temporary folder, a clock that only moves when told, and other people's owners."""

import dataclasses
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.state.claim import Claim
from pipeline.state.owner import Owner
from pipeline.state.records import CheckpointEntry, Head
from pipeline.state.run_state import Clock, RunState
from pipeline.state.stores import FileStore
from tests.support.s3_server import FaultProxy, S3Server


class FakeClock:
    """Time that passes only while somebody sleeps; `during_sleep` runs after each sleep."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.during_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.during_sleep()

    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, monotonic=lambda: self.time, sleep=self.sleep)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "runs")


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What stands between this process's S3 clients and the service, and may fail."""
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        yield proxy


@pytest.fixture
def time() -> FakeClock:
    return FakeClock()


@pytest.fixture
def run(store: FileStore, time: FakeClock) -> RunState:
    return RunState(store, "demo", time.clock())


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `python -c code arguments…`; whatever still lives after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def someone(**changes: Any) -> Owner:
    """An owner on another machine, of which nothing can be told from here."""
    elsewhere = {
        "session": uuid.uuid4().hex,
        "host": "elsewhere",
        "boot_id": "another-boot",
        "launch_id": None,
    }
    return dataclasses.replace(Owner.me(), **{**elsewhere, **changes})


def read(run: RunState) -> Head:
    head = run.read()
    assert head is not None
    return head


def an_entry(step: int, epoch: int = 1, stage: str = "pretrain", **changes: Any) -> CheckpointEntry:
    entry = CheckpointEntry(
        stage=stage,
        step=step,
        epoch=epoch,
        digest="d",
        key=f"checkpoints/{stage}/{step}-{epoch}",
        at=1.0,
        bytes=10,
        model_sha256="0" * 64,
    )
    return dataclasses.replace(entry, **changes)


def list_checkpoint(claim: Claim, entry: CheckpointEntry) -> None:
    """List `entry` in HEAD, as if it had been saved."""
    claim.commit(lambda head: head.with_checkpoint(entry))
