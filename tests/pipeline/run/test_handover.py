"""A hop, seen from the new machine: it asks the old owner to save, and nothing is lost."""

import dataclasses
import threading

import pytest

from pion.errors import BadInput, PionError
from pipeline.console.messages import Note
from pipeline.job.file import load_job
from pipeline.run.command import run_job
from pipeline.run.handover import FROM_EPOCH, ask_for_handover
from pipeline.run.inputs import RunOptions
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import clear_stops, pending_stop
from pipeline.state.owner import RELEASED
from pipeline.state.run_state import RunState
from pipeline.state.status.run_status import run_status
from pipeline.state.stores import FileStore, open_store
from tests.support.jobs import SilentDisplay
from tests.support.light_run import light_run, save_checkpoint
from tests.support.states import NEW, OLD, read, someone
from tests.support.waiting import join
from tests.support.whole_runs import write_job


@pytest.fixture
def run(tmp_path, time):
    """A released run with work left, last claimed under epoch 2."""
    return light_run(FileStore(tmp_path / "runs"), clock=time.clock())


def arrive(run, epoch, me=NEW, fetch=lambda: None):
    """Do what the new machine does before it claims; return what it says."""
    said = []
    environment = {FROM_EPOCH: str(epoch)}
    ask_for_handover(run, me, say=said.append, fetch=fetch, environment=environment)
    return said


def test_the_old_owner_saves_and_releases_and_the_new_one_continues_from_there(run, time):
    old = claim_run(run, OLD)
    said = arrive(run, old.epoch)
    assert said == [f"asked {OLD.describe()} to save its work and hand the run over"]

    def old_lives():
        if old._fenced is None:
            old.heartbeat.beat()
        if old.heartbeat.stop_request is not None and old._fenced is None:
            save_checkpoint(old, "sft", 9, "digest")
            old.release()

    time.during_sleep = old_lives
    started = time.time
    claim = claim_run(run, NEW, unattended=True)
    assert claim.reason == RELEASED
    assert claim.before.checkpoints[0].step == 9  # nothing is lost
    assert time.time - started < 5  # without waiting for silence


def test_nobody_is_asked_before_the_new_machine_has_come(run):
    claim_run(run, OLD)
    ask_for_handover(run, NEW, say=print, fetch=lambda: None, environment={})
    assert pending_stop(run) is None


def test_the_new_launch_is_not_stopped_by_its_own_request_and_restarts_of_the_old_are(run):
    old = claim_run(run, OLD)
    arrive(run, old.epoch)
    old.release()
    new = claim_run(run, NEW)
    new.heartbeat.beat()
    assert new.heartbeat.stop_request is None
    assert pending_stop(run, launch_id="launch-new") is None
    asked = pending_stop(run, launch_id="launch-old")
    assert "pion hop to pod-new" in asked.describe()


def test_what_the_new_machine_needs_is_fetched_while_the_old_one_still_works(run):
    old = claim_run(run, OLD)
    asked_by_then = []
    arrive(run, old.epoch, fetch=lambda: asked_by_then.append(pending_stop(run)))
    assert asked_by_then == [None]


def test_a_fetch_that_fails_keeps_nobody_from_taking_over(run):
    def fetch():
        raise PionError("the data can't be used")

    old = claim_run(run, OLD)
    assert arrive(run, old.epoch, fetch=fetch)
    assert pending_stop(run) is not None


def test_an_owner_that_has_restarted_since_is_still_the_one_to_relieve(run):
    old = claim_run(run, OLD)
    claim_run(run, dataclasses.replace(OLD, session="after a preemption"))
    assert arrive(run, old.epoch)


def test_a_person_who_has_taken_the_run_over_since_is_not_asked(run):
    old = claim_run(run, OLD)
    claim_run(run, someone(host="desk"), take_over=True)
    assert arrive(run, old.epoch) == []
    assert pending_stop(run) is None


def test_a_launch_that_had_the_run_asks_nobody_when_it_is_restarted(run):
    old = claim_run(run, OLD)
    arrive(run, old.epoch)
    old.release()
    claim_run(run, NEW)
    clear_stops(run)
    claim_run(run, dataclasses.replace(OLD, session="back again"), take_over=True)
    assert arrive(run, old.epoch, me=dataclasses.replace(NEW, session="restarted")) == []
    assert pending_stop(run) is None


def test_a_machine_that_comes_late_leaves_a_run_alone_that_has_moved(run):
    claim_run(run, OLD).release()  # the first machine was taken away, and another one is booting
    assert arrive(run, read(run).epoch) == []
    assert arrive(run, read(run).epoch) == []  # its boot was interrupted
    assert pending_stop(run, launch_id="launch-new") is None
    assert pending_stop(run, launch_id="launch-old") is not None
    assert clear_stops(run) == 1


def test_a_run_that_somebody_had_and_released_meanwhile_is_asked_nothing(run):
    before = read(run).epoch
    claim_run(run, someone(host="desk")).release()
    assert arrive(run, before) == []
    assert pending_stop(run) is None


def test_asking_twice_leaves_one_request(run):
    old = claim_run(run, OLD)
    arrive(run, old.epoch)
    arrive(run, old.epoch)  # its boot was interrupted
    assert clear_stops(run) == 1


def test_an_epoch_that_is_none_is_refused(run):
    with pytest.raises(BadInput, match=f"{FROM_EPOCH} is 'two', but it must be an epoch"):
        ask_for_handover(run, NEW, say=print, fetch=lambda: None, environment={FROM_EPOCH: "two"})


def test_status_calls_a_run_stopped_by_a_hop_only_while_the_old_owner_has_it(run):
    old = claim_run(run, OLD)
    arrive(run, old.epoch)
    assert run_status(run, read(run), 0.0)["stop"]["except_launch"] == "launch-new"
    old.release()
    claim_run(run, NEW)
    assert run_status(run, read(run), 0.0)["stop"] is None


def test_pion_run_on_the_new_machine_asks_waits_and_continues_to_the_end(tmp_path, monkeypatch):
    job = load_job(write_job(tmp_path, sft=None))
    run = RunState(open_store(job.store), job.name)
    old = claim_run(run, OLD)
    old.heartbeat.start(0.1)
    write_rental_note(run, RentalNote(0.0, "desk", "1a2b3c4d", "launch-new", old.epoch), None)

    def hand_over_when_asked():
        while old.heartbeat.stop_request is None:
            threading.Event().wait(0.05)
        old.release()

    worker = threading.Thread(target=hand_over_when_asked)
    worker.start()
    monkeypatch.setenv("PION_LAUNCH_ID", "launch-new")
    monkeypatch.setenv(FROM_EPOCH, str(old.epoch))
    display = SilentDisplay()
    assert run_job(job, RunOptions(unattended=True), display) == 0
    join(worker)
    notes = [m.text for m in display.messages if isinstance(m, Note)]
    assert f"asked {OLD.describe()} to save its work and hand the run over" in notes
    assert read(run).claims[1].owner.launch_id == "launch-new"
    assert read_rental_note(run)[0] is None  # the rental is over
