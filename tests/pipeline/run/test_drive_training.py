"""How the driver follows its workers, and what it says of a group whose size may change."""

import queue
import time
from types import SimpleNamespace

import pytest

from pion.errors import Interrupted
from pipeline.console.messages import MachineNotice, Note, Step, Trained
from pipeline.run import drive_training
from pipeline.run.drive_training import ABSENCE_SECONDS, Absence, WorkersTraining
from pipeline.run.signals import StoppingOnSignals
from tests.support.jobs import SilentDisplay, tiny_job


def test_an_absence_of_all_workers_is_said_once():
    absence = Absence(tiny_job(hardware__workers=[2, 16]).hardware)
    assert absence.look(0, 50.0) is None
    assert absence.look(0, 50.0 + ABSENCE_SECONDS - 1) is None
    said = absence.look(0, 50.0 + ABSENCE_SECONDS)
    assert said.startswith("hardware.workers [2, 16]: no worker has trained for 120 s. Everything ")
    assert "once it has room for 2 workers. `ray status` shows" in said
    assert absence.look(0, 50.0 + 2 * ABSENCE_SECONDS) is None


def test_each_absence_counts_from_the_last_worker():
    absence = Absence(tiny_job(hardware__workers=[2, 16]).hardware)
    assert absence.look(0, 0.0) is None
    assert absence.look(1, 60.0) is None
    assert absence.look(0, 100.0) is None
    assert absence.look(0, 99.0 + ABSENCE_SECONDS) is None
    assert absence.look(0, 100.0 + ABSENCE_SECONDS)
    assert absence.look(3, 500.0) is None
    assert absence.look(0, 600.0) is None
    assert absence.look(0, 600.0 + ABSENCE_SECONDS), "the second absence is said, too"


@pytest.mark.parametrize(("workers", "stays"), [(2, False), ([2, 16], True)])
def test_a_group_whose_size_may_change_stays_when_a_workers_machine_will_be_taken(workers, stays):
    said = []
    noticed = []
    preemption_stop = SimpleNamespace(noticed=lambda text, seconds: noticed.append(text))
    start = SimpleNamespace(
        job=tiny_job(hardware__workers=workers), preemption_stop=preemption_stop
    )
    training = WorkersTraining(start, None, None, said.append)
    training._hear(1, MachineNotice("the machine of worker 1: AWS takes it", 120.0))
    text = "the machine of worker 1: AWS takes it. The other workers will train on without it"
    assert said == ([Note(text)] if stays else [])
    assert noticed == ([] if stays else ["the machine of worker 1: AWS takes it"])


def test_a_stop_between_two_groups_says_from_where_the_next_start_resumes(monkeypatch):
    monkeypatch.setattr(drive_training, "GONE_SECONDS", 0.0)
    did = []
    lifeline = SimpleNamespace(connected=3, ask_to_stop=lambda: did.append("ask"))
    workers = SimpleNamespace(
        lifeline=lifeline,
        messages=queue.Queue(),
        end_in_order=lambda: did.append("end in order"),
        started=0.0,
        shared=True,
    )
    stopping = StoppingOnSignals(SilentDisplay())
    start = SimpleNamespace(job=tiny_job(hardware__workers=[2, 16]), stopping=stopping)
    claim = SimpleNamespace(check=lambda: None)
    training = WorkersTraining(start, claim, workers, lambda message: None)
    assert not training._ended_in_silence()  # three workers train
    lifeline.connected = 0
    stopping.ask("SIGINT")
    with pytest.raises(Interrupted) as stopped:
        training.follow(lambda: None)
    assert "no worker trained at that moment, so the next start resumes" in str(stopped.value)
    assert did == ["ask", "end in order"]


def test_training_ends_once_no_thread_imports_any_more(monkeypatch):
    """Publishing imports transformers, and must not find half of it."""
    ended = []
    workers = SimpleNamespace(messages=queue.Queue(), started=0.0, shared=True)
    start = SimpleNamespace(job=tiny_job(), stopping=StoppingOnSignals(SilentDisplay()))
    claim = SimpleNamespace(check=lambda: None)
    training = WorkersTraining(start, claim, workers, lambda message: None)
    monkeypatch.setattr(training, "_import_ahead", lambda: ended.append(time.sleep(0.5)))
    for message in (Step("pretrain", 1, 1, 3.2, 0.02, 4120.4), Trained("done")):
        workers.messages.put((0, message))
    assert training.follow(lambda: None) == "done"
    assert ended
