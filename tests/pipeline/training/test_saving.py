"""When a stage is saved, and what happens when a save hangs."""

import os
import signal
from pathlib import Path

import pytest
import torch

from pion.errors import NotDurable
from pion.train.trainer import TrainState
from pipeline.console.messages import CheckpointSaved
from pipeline.job import Checkpoint
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.state.checkpoints.uploader import Uploader, UploaderDied
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from pipeline.state.stores.clock import Clock
from pipeline.training.cadence import SaveCadence
from pipeline.training.saving import Saving


class Stage:
    """A stage at `step`. A real uploader writes its saves. `said` has the notes that it reports."""

    def __init__(self, folder):
        store = FileStore(folder)
        claim = claim_run(RunState(store, "demo"), Owner.me())
        self.step, self.now, self.said = 10, 0.0, list[str]()
        self.uploader = Uploader(Snapshot(), store.url, patience=60.0)
        self.checkpointer = Checkpointer(
            claim, CheckpointSeries("pretrain", "d1", lambda state: {}), uploader=self.uploader
        )
        self.cadence = SaveCadence(None, None, preemption_seconds=7200.0, last_save=0.0)
        self.saving = Saving(
            self.checkpointer,
            Checkpoint(max_undurable=1800.0),
            self.cadence,
            report=lambda message: self.said.append(getattr(message, "text", "")),
            clock=Clock(monotonic=lambda: self.now, sleep=lambda seconds: None),
        )

    def pass_time(self, seconds):
        self.now += seconds

    def state(self):
        return TrainState({"weight": torch.ones(8)}, {}, {"step": self.step})


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.checkpointer.close()


def test_a_save_that_hangs_is_an_outage_and_the_next_has_a_new_uploader(stage):
    stage.saving.complete(stage.state())
    uploader = stage.uploader
    hanging = uploader._process
    os.kill(hanging.pid, signal.SIGSTOP)
    uploader.patience = 0.2
    stage.step, stage.now = 20, 1801.0
    stage.saving.begin(stage.state())
    stage.checkpointer.wait()
    stage.saving.follow()
    assert "did not respond within 0.2 s, so Pion killed the process" in stage.said[-1]
    assert "checkpoint.max_undurable" in stage.said[-1]
    assert stage.saving.too_long_undurable()
    assert hanging.returncode == -signal.SIGKILL
    uploader.patience = 60.0
    stage.saving.hold(stage.state(), lambda: False)
    assert stage.checkpointer.stats.durable_step == 20
    assert stage.said[-1] == "saving works again"
    assert not stage.saving.too_long_undurable()


def test_a_last_save_whose_uploader_was_killed_is_made_again_each_time(stage, monkeypatch):
    save, killed = stage.uploader.save, set[int]()

    def save_later(request):
        if stage.step not in killed:
            killed.add(stage.step)
            raise UploaderDied("save", request.key, "the process was killed", outage=True)
        return save(request)

    monkeypatch.setattr(stage.uploader, "save", save_later)
    for stage.step in (10, 20, 30):  # three deaths in a row would end the run
        stage.saving.complete(stage.state())
        assert stage.checkpointer.stats.durable_step == stage.step
    assert killed == {10, 20, 30}


def test_a_save_that_is_refused_for_good_names_the_copy_on_this_machine(stage, monkeypatch):
    monkeypatch.setattr(stage.checkpointer, "local_copy", lambda: Path("/the/copy"))
    for save in (stage.saving.begin, stage.saving.complete):
        stage.checkpointer._failure = StoreError("write", "s3://b/x", "access was denied")
        with pytest.raises(NotDurable, match=r"access was denied.* on this machine, in /the/copy"):
            save(stage.state())


def test_a_run_that_ends_since_its_last_save_failed_does_not_say_that_it_trains_on(
    stage, monkeypatch
):
    monkeypatch.setattr(stage.checkpointer, "save", lambda *state: True)
    stage.checkpointer.stats.outage = StoreError("write", "s3://b/x", "no answer", outage=True)
    for patience in (0.0, 3.0):
        stage.now = 0.0
        stage.saving._clock = Clock(lambda: 0.0, lambda: stage.now, stage.pass_time)
        with pytest.raises(NotDurable, match="no answer"):
            stage.saving.complete(stage.state(), patience)
    assert stage.said[0] == "nothing can be saved now: Cannot write s3://b/x: no answer."
    assert not any("Training continues" in said for said in stage.said)


@pytest.mark.parametrize(
    ("age", "best", "saved"), [(119.0, False, False), (120.0, False, True), (119.0, True, True)]
)
def test_evaluating_saves_first_as_often_as_the_store_bears_it(stage, age, best, saved):
    """With `keep.best`, always: the loss belongs to a checkpoint of the same step."""
    stage.cadence.floor_seconds = 120.0
    stage.now = age
    stage.saving.settings = Checkpoint.model_validate({"keep": {"best": best}})
    assert stage.saving.due_before_evaluating() == saved


@pytest.mark.parametrize(
    ("checkpoint", "interval"),
    [
        (Checkpoint(), 26.8),  # √(2 · 0.05 s · 7,200 s)
        (Checkpoint(every_steps=5), None),
        (Checkpoint(every_steps=5, every_seconds=90.0), 90.0),
    ],
)
def test_a_save_reports_the_seconds_between_two_of_them_where_time_decides(
    stage, checkpoint, interval
):
    saving, reported = stage.saving, list[CheckpointSaved]()
    saving._report = reported.append
    stage.cadence.every_steps = checkpoint.every_steps
    stage.cadence.every_seconds = checkpoint.every_seconds
    stage.checkpointer.stats.durable_step = 10
    saving.follow()
    assert reported[0].interval == pytest.approx(interval, abs=0.1)
