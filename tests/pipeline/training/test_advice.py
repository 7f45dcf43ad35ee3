"""What a run says before a mistake costs time or its saves."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from pipeline.machine.core_waits import Times
from pipeline.state.head import Head
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from pipeline.training import advice
from pipeline.training.advice import FIRST_SECONDS, LOOK_SECONDS, Advice, BusyCores, Work
from tests.support.jobs import tiny_job
from tests.support.states import an_entry


class Said:
    """Advice about a stage of 100 steps, which hears a save each minute."""

    def __init__(self, folder, monkeypatch, stage="pretrain", **changes):
        self.now, self.free, self.notes = 0.0, 10**12, list[str]()
        job = tiny_job(pretrain__steps=100, **changes)
        self.advice = Advice(job, stage, 0, "demo", self._say, clock=lambda: self.now)
        self.workspace = Workspace(FileStore(folder), "demo")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=self.free))

    def _say(self, message):
        self.notes.append(message.text)

    def saved(self, step, free, head=None):
        self.now += 60.0
        self.free = free
        entry = an_entry(step, bytes=10**9)
        self.advice.saved(entry, head or Head(), self.workspace)


@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({}, "Its checkpoint may not be kept. To publish the checkpoint with the lowest loss, set"),
        ({"checkpoint__keep": {"best": True}}, "Its checkpoint is kept: demo@20."),
        ({"sft": None, "evaluate__checkpoint": "best"}, "This job publishes the checkpoint with"),
    ],
)
def test_a_held_out_loss_that_rises_three_times_in_a_row_is_said_once(
    changes, best, tmp_path, monkeypatch
):
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


def test_held_out_rewards_may_fall_by_chance(tmp_path, monkeypatch):
    rewards = {"sources": [{"kind": "python-docs-qa"}], "rewards": ["exact"], "max_tokens": 8}
    said = Said(tmp_path, monkeypatch, stage="reinforce", reinforce=rewards)
    for step, reward in enumerate((0.06, 0.05, 0.04, 0.03), 1):
        said.advice.evaluated(step, -reward)
    assert said.notes == []


@pytest.fixture
def shared_disk(monkeypatch):
    """Let the store be on a disk that other machines read, too."""
    monkeypatch.setattr(advice, "deletes_early", lambda store, run: False)


@pytest.mark.usefixtures("shared_disk")
def test_a_disk_that_will_not_hold_the_next_saves_is_said_once_before_it_is_full(
    tmp_path, monkeypatch
):
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
def test_saves_that_are_deleted_in_time_make_room(tmp_path, monkeypatch):
    said = Said(tmp_path, monkeypatch)
    replaced = [f"checkpoints/pretrain/{step}-1" for step in range(1, 8)]
    said.saved(10, free=2 * 10**9, head=Head().with_trash(replaced, 0.0))
    assert said.notes == []
    said.saved(20, free=10**8, head=Head().with_trash(replaced, 0.0))
    assert len(said.notes) == 1


def test_a_disk_of_this_machine_needs_room_for_two_replaced_checkpoints(tmp_path, monkeypatch):
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


# ---------------------------------------------------------------- busy cores


TINY = Work(rows=128, width=32)
LARGE = Work(rows=10_000, width=1024)


class Machine:
    """A machine with `threads` for training, which other programs use `share` of the time. Training
    wants to compute for `wants` of it."""

    def __init__(self, threads=2, work=TINY, share=0.5, wants=1.0):
        self.wants, self.passed = wants, 0.0
        self.share, self.now, self.notes, self.tried = share, 0.0, list[str](), list[int]()
        self.rates = {1: 900.0, 2: 16.0, 4: 10.0}
        self._times: Times = {1: (0, 0)}
        self.cores = BusyCores(work, threads, self._say, self._passed, lambda: self.now, self._rate)

    def train(self, seconds=LOOK_SECONDS):
        """Train for so many seconds; return what is said then."""
        self.now += seconds
        self.notes.clear()
        self.cores.look()
        return list(self.notes)

    def _passed(self):
        run, waited = self._times[1]
        wanted, self.passed = int(1e9 * self.wants * (self.now - self.passed)), self.now
        more = int(self.share * wanted)
        self._times = {1: (run + wanted - more, waited + more)}
        return self._times

    def _rate(self, threads):
        self.tried.append(threads)
        return self.rates[threads]

    def _say(self, message):
        self.notes.append(message.text)


def test_the_number_of_threads_that_is_faster_is_said_once_with_what_was_measured():
    machine = Machine()
    assert machine.train(1.0) == []
    (note,) = machine.train(FIRST_SECONDS)
    assert "training waited for a core 50% of the time. With hardware.threads=1, products" in note
    assert "are now 56 times as fast as with 2 (16 → 900 per second)" in note
    assert "run the same command with hardware.threads=1: it resumes" in note
    assert machine.train() == []


def test_a_machine_that_becomes_busy_later_is_found_while_training():
    machine = Machine(threads=4, share=0.1)
    assert machine.train() == []
    assert machine.tried == []
    machine.share = 0.5
    assert machine.train(LOOK_SECONDS / 2) == []
    machine.rates = {1: 60.0, 2: 90.0, 4: 10.0}
    (note,) = machine.train()
    assert "With hardware.threads=2" in note


@pytest.mark.parametrize("machine", [Machine(threads=1), Machine(work=LARGE)])
def test_where_no_number_of_threads_helps_the_cause_is_said_once(machine):
    machine.share = 0.4
    assert machine.train() == []
    machine.share = 0.6
    (note,) = machine.train()
    assert "waited for a core 60% of the time, so it is slow" in note
    assert machine.train() == []
    assert machine.tried == []


def test_a_process_that_hardly_computes_is_not_slow_because_of_other_programs():
    machine = Machine(share=0.9, wants=0.1)  # its own rewards judge answers for nine tenths
    assert machine.train() == machine.train() == []


def test_trials_that_find_nothing_become_rare():
    machine = Machine(share=0.4)
    machine.rates = {1: 20.0, 2: 16.0}
    for _ in range(100):
        assert machine.train() == []
    assert len(machine.tried) <= 2 * 8


def test_a_trial_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert TINY.rate(1) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
