"""What a run says before a mistake costs time or its saves."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.console.messages import Note, Shown
from pipeline.state.head import Head
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from pipeline.training import advice
from pipeline.training.advice import Advice
from tests.support.jobs import tiny_job
from tests.support.states import an_entry


class Said:
    """Advice about pretraining of 100 steps, which hears a save each minute."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
        self.now, self.free, self.notes = 0.0, 10**12, list[str]()
        job = tiny_job(pretrain__steps=100, **changes)
        self.advice = Advice(job, "pretrain", 0, "demo", self._say, clock=lambda: self.now)
        self.workspace = Workspace(FileStore(folder), "demo")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=self.free))

    def _say(self, message: Shown) -> None:
        assert isinstance(message, Note)
        self.notes.append(message.text)

    def saved(self, step: int, free: int, head: Head | None = None) -> None:
        self.now += 60.0
        self.free = free
        entry = an_entry(step, bytes=10**9)
        self.advice.saved(entry, head or Head(), self.workspace)


@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({}, "Its checkpoint may not be kept. To publish the checkpoint with the lowest loss, set"),
        ({"checkpoint__keep": {"best": True}}, "Its checkpoint is kept: demo@20."),
        (
            {"sft": None, "evaluate__checkpoint": "best"},
            "This job publishes the checkpoint with the lowest loss.",
        ),
    ],
)
def test_a_held_out_loss_that_rises_three_times_in_a_row_is_said_once(
    changes: dict[str, object], best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said(tmp_path, monkeypatch, **changes)
    for step, loss in enumerate((3.0, 2.0, 2.1, 2.2, 2.2, 2.3, 2.4), 1):
        said.advice.evaluated(10 * step, loss)
    assert said.notes == []
    for step in (80, 90):
        said.advice.evaluated(step, step / 30)
    (note,) = said.notes
    rise = "2.2000 (step 50) → 2.3000 (step 60) → 2.4000 (step 70) → 2.6667 (step 80)"
    assert f"has risen 3 times in a row: {rise}" in note
    assert f"train less (pretrain.steps=20). The lowest was 2.0000 at step 20. {best}" in note


@pytest.fixture
def shared_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store be on a disk that other machines read, too."""
    monkeypatch.setattr(advice, "deletes_early", lambda store, run: False)


@pytest.mark.usefixtures("shared_disk")
def test_a_disk_that_will_not_hold_the_next_saves_is_said_once_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said(tmp_path, monkeypatch)
    said.saved(10, free=9 * 10**9)  # nine saves are left
    assert said.notes == []
    said.saved(20, free=7 * 10**9 + 1)
    said.saved(30, free=6 * 10**9)
    (note,) = said.notes
    assert "has 7 GB free. A checkpoint takes 1 GB, one is saved every 1 min 00 s" in note
    assert "The disk holds 7 more, and 80 steps are left." in note
    assert "checkpoint.every_seconds, such as 180." in note


@pytest.mark.usefixtures("shared_disk")
def test_saves_that_are_deleted_in_time_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said(tmp_path, monkeypatch)
    replaced = [f"checkpoints/pretrain/{step}-1" for step in range(1, 8)]
    said.saved(10, free=2 * 10**9, head=Head().with_trash(replaced, 0.0))
    assert said.notes == []
    said.saved(20, free=10**8, head=Head().with_trash(replaced, 0.0))
    assert len(said.notes) == 1


def test_a_disk_of_this_machine_needs_room_for_two_replaced_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said(tmp_path, monkeypatch)
    said.saved(10, free=2 * 10**9)
    one = Head().with_trash(["checkpoints/pretrain/10-1"], 0.0)
    said.saved(20, free=10**9, head=one)
    two = one.with_trash(["checkpoints/pretrain/20-1"], 0.0)
    said.saved(30, free=0, head=two)  # the next save deletes step 10 before it writes
    assert said.notes == []
    said.saved(40, free=10**8, head=one)
    (note,) = said.notes
    assert "saved every 1 min 00 s, and 2 replaced ones stay for those who read them. " in note
