"""When a stage is saved, and what happens when a save hangs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pion.train.trainer import TrainState
from pipeline.job import Checkpoint
from pipeline.state.checkpoint import Checkpointer
from pipeline.state.head import RunState
from pipeline.state.owner import Owner
from pipeline.state.stores import FileStore
from pipeline.state.uploader_process import UploaderProcess
from pipeline.state.workspace import Workspace
from pipeline.training.loop import StageTraining
from pipeline.training.saving import Saving


class Stage:
    """A stage at `step`, whose saves a real uploader writes. `said` are the notes it reports."""

    def __init__(self, folder: Path) -> None:
        store = FileStore(folder)
        claim = RunState(store, "demo").claim(Owner.me())
        self.step, self.now, self.said = 10, 0.0, list[str]()
        self.uploaders: list[UploaderProcess] = []
        self.checkpointer = Checkpointer(
            claim, "pretrain", "d1", files={}, uploader=self.start_uploader
        )
        self.saving = Saving(
            self.checkpointer,
            "pretrain",
            Checkpoint(max_undurable=1800.0),
            Workspace(store, "demo"),
            preemption_seconds=7200.0,
            on_cpu=True,
            state=lambda: TrainState({"weight": torch.ones(8)}, {}, {"step": self.step}),
            prepare=lambda: None,
            report=lambda message: self.said.append(message.get("text", "")),
            sleep=lambda seconds: None,
            now=lambda: self.now,
        )

    def start_uploader(self, descriptor: int) -> UploaderProcess:
        self.uploaders.append(UploaderProcess(descriptor, patience=60.0))
        return self.uploaders[-1]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.checkpointer.close()


def test_a_save_that_hangs_is_an_outage_and_the_next_has_a_new_uploader(stage: Stage) -> None:
    stage.saving.complete()
    (uploader,) = stage.uploaders
    hanging = uploader._process
    os.kill(hanging.pid, signal.SIGSTOP)
    uploader.patience = 0.2
    stage.step, stage.now = 20, 1801.0
    stage.saving.begin()
    stage.checkpointer.wait()
    stage.saving.follow()
    assert "gave no answer within 0.2 s and was ended" in stage.said[-1]
    assert "checkpoint.max_undurable" in stage.said[-1]
    assert stage.saving.too_long_undurable()
    assert hanging.returncode == -signal.SIGKILL
    uploader.patience = 60.0
    stage.saving.hold(lambda: False)
    assert stage.checkpointer.stats.durable_step == 20
    assert stage.said[-1] == "saving works again"
    assert not stage.saving.too_long_undurable()


@pytest.mark.parametrize(
    ("age", "best", "saved"), [(119.0, False, False), (120.0, False, True), (119.0, True, True)]
)
def test_evaluating_saves_first_as_often_as_the_store_bears_it(
    stage: Stage, age: float, best: bool, saved: bool
) -> None:
    """With `keep.best` always: the loss belongs to a checkpoint of that very step."""
    stage.saving.cadence.floor_seconds = 120.0
    stage.now = age
    training: Any = StageTraining.__new__(StageTraining)
    training.saving, training.checkpointer = stage.saving, stage.checkpointer
    training.trainer = SimpleNamespace(trouble=lambda: None)
    training.job = SimpleNamespace(checkpoint=Checkpoint.model_validate({"keep": {"best": best}}))
    training._save_before_evaluating(last=False)
    stage.checkpointer.wait()
    assert (stage.checkpointer.last is not None) == saved
