"""What a run says when other programs use its cores."""

from __future__ import annotations

import pytest
import torch

from pipeline.console.messages import Note, Shown
from pipeline.machine.core_waits import LEAST_NS, Times
from pipeline.training.advice import FIRST_SECONDS, LOOK_SECONDS, BusyCores, Work

TINY = Work(rows=128, width=32)
LARGE = Work(rows=10_000, width=1024)


class Machine:
    """A machine with `threads` for training, which other programs use `share` of the time."""

    def __init__(self, threads: int = 2, work: Work = TINY, share: float = 0.5) -> None:
        self.share, self.now, self.notes, self.tried = share, 0.0, list[str](), list[int]()
        self.rates = {1: 900.0, 2: 16.0, 4: 10.0}
        self._times: Times = {1: (0, 0)}
        self.cores = BusyCores(work, threads, self._say, self._passed, lambda: self.now, self._rate)

    def train(self, seconds: float = LOOK_SECONDS) -> list[str]:
        """Train for so many seconds; return what is said then."""
        self.now += seconds
        self.notes.clear()
        self.cores.look()
        return list(self.notes)

    def _passed(self) -> Times:
        run, waited = self._times[1]
        more = int(self.share * 10 * LEAST_NS)
        self._times = {1: (run + 10 * LEAST_NS - more, waited + more)}
        return self._times

    def _rate(self, threads: int) -> float:
        self.tried.append(threads)
        return self.rates[threads]

    def _say(self, message: Shown) -> None:
        assert isinstance(message, Note)
        self.notes.append(message.text)


def test_the_number_of_threads_that_is_faster_is_said_once_with_what_was_measured() -> None:
    machine = Machine()
    assert machine.train(1.0) == []
    (note,) = machine.train(FIRST_SECONDS)
    assert "training waited for a core 50% of the time. With hardware.threads=1, products" in note
    assert "are now 56 times as fast as with 2 (16 → 900 per second)" in note
    assert "run the same command with hardware.threads=1: it resumes" in note
    assert machine.train() == []


def test_a_machine_that_becomes_busy_later_is_found_while_training() -> None:
    machine = Machine(threads=4, share=0.1)
    assert machine.train() == []
    assert machine.tried == []
    machine.share = 0.5
    assert machine.train(LOOK_SECONDS / 2) == []
    machine.rates = {1: 60.0, 2: 90.0, 4: 10.0}
    (note,) = machine.train()
    assert "With hardware.threads=2" in note


@pytest.mark.parametrize("machine", [Machine(threads=1), Machine(work=LARGE)])
def test_where_no_number_of_threads_helps_the_cause_is_said_once(machine: Machine) -> None:
    machine.share = 0.4
    assert machine.train() == []
    machine.share = 0.6
    (note,) = machine.train()
    assert "waited for a core 60% of the time, so it is slow" in note
    assert machine.train() == []
    assert machine.tried == []


def test_trials_that_find_nothing_become_rare() -> None:
    machine = Machine(share=0.4)
    machine.rates = {1: 20.0, 2: 16.0}
    for _ in range(100):
        assert machine.train() == []
    assert len(machine.tried) <= 2 * 8


def test_a_trial_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert TINY.rate(1) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
