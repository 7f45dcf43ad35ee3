"""Owning a run: epochs, fencing, lost acknowledgements, and who may take over when."""

import dataclasses
import os
import signal
import subprocess
import threading

import pytest

from pion.errors import BadInput, Fenced
from pipeline.state import owner
from pipeline.state.claim import Claim, claim_run
from pipeline.state.head import CLAIMS_KEPT, WRITE_IDS_KEPT, Head
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict, StoreError
from tests.support.hooked_store import Hooked, once
from tests.support.states import an_entry, list_checkpoint, read, someone
from tests.support.waiting import join, wait_until


def test_the_same_process_claims_again_for_each_attempt(run):
    me = Owner.me()
    assert run.read() is None
    first = claim_run(run, me)
    second = claim_run(run, me)
    assert (first.epoch, second.epoch) == (1, 2)
    with pytest.raises(Fenced):
        first.set_job("x")


def test_an_owner_elsewhere_is_refused_and_named(run):
    claim_run(run, someone(host="gpu-7", pid=4711))
    before = run.store.read("demo/HEAD.json")
    with pytest.raises(BadInput) as refused:
        claim_run(run, Owner.me())
    message = str(refused.value)
    assert "pid 4711 on gpu-7 has owned run demo since 1970-01-12 13:46:40 UTC" in message
    assert "can't tell whether that process is still running" in message
    assert "--take-over" in message
    assert run.store.read("demo/HEAD.json") == before


def test_a_living_owner_on_this_machine_is_refused_as_running(run):
    claim_run(run, dataclasses.replace(Owner.me(), session="another"))
    with pytest.raises(BadInput, match=f"pid {os.getpid()} .* That process is running"):
        claim_run(run, Owner.me())


def test_a_suspended_owner_is_named_with_the_way_to_continue_it(run):
    with subprocess.Popen(["sleep", "60"]) as process:
        me, started = Owner.me(), owner._running(process.pid)
        claim_run(run, dataclasses.replace(me, session="o", pid=process.pid, pid_start=started))
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: owner.is_suspended(process.pid), "that it is suspended")
        with pytest.raises(BadInput, match=rf"suspended \(Ctrl-Z\).* `fg` .* -CONT {process.pid}"):
            claim_run(run, me)
        process.kill()


def test_an_owner_that_died_on_this_machine_is_replaced_at_once(run):
    me = Owner.me()
    claim_run(run, dataclasses.replace(me, session="another", pid_start=me.pid_start - 1))
    claim = claim_run(run, me)
    assert claim.epoch == 2
    assert "is dead" in claim.reason
    assert claim.before.session == "another"


def test_an_unattended_start_waits_for_a_minute_of_silence(run, time):
    claim_run(run, someone())
    started = time.time
    said = []
    claim = claim_run(run, someone(), unattended=True, say=said.append)
    assert claim.epoch == 2
    assert 60 <= time.time - started < 65
    assert "Waiting until the owner shows no sign of life" in said[0]


@pytest.mark.parametrize("sign", ["heartbeat", "commit"])
def test_an_unattended_start_keeps_waiting_while_the_owner_shows_signs_of_life(run, time, sign):
    owner = claim_run(run, someone())
    started = time.time

    def live_for_five_minutes():
        if time.time < started + 300 and int(time.time) % 20 == 0:
            if sign == "heartbeat":
                owner.heartbeat.beat()
            else:
                owner.set_job(str(time.time))

    time.during_sleep = live_for_five_minutes
    assert claim_run(run, someone(), unattended=True).epoch == 2
    assert time.time - started >= 300 + 40


def test_an_unattended_start_continues_as_soon_as_the_owner_releases(run, time):
    owner = claim_run(run, someone())
    started = time.time
    time.during_sleep = lambda: owner.release() if owner.epoch == read(run).epoch else None
    assert claim_run(run, someone(), unattended=True).epoch == 2
    assert time.time - started < 10


def test_attempts_without_progress_are_counted_until_something_is_committed(run):
    for _ in range(5):
        claim = claim_run(run, someone(), take_over=True)
        claim.set_restore("pretrain", 0)
    assert claim.head.epoch - claim.head.committed_epoch == 5
    list_checkpoint(claim, an_entry(10, epoch=5))
    assert claim.head.epoch - claim.head.committed_epoch == 0
    claim = claim_run(run, someone(), take_over=True)
    claim.release()
    head = claim_run(run, someone()).head
    assert head.epoch - head.committed_epoch == 2
    claim_run(run, someone(), take_over=True).release(forget_attempts=True)
    head = claim_run(run, someone()).head
    assert head.epoch - head.committed_epoch == 1


# Committing


def test_the_old_owner_is_fenced_and_learns_who_took_over_and_when(run, time):
    old = claim_run(run, someone())
    time.time += 100
    new = claim_run(run, someone(host="gpu-9", pid=99), take_over=True)
    list_checkpoint(new, an_entry(20, epoch=2))
    with pytest.raises(Fenced) as fenced:
        list_checkpoint(old, an_entry(10))
    assert fenced.value.exit_code == 3
    assert "taken over by pid 99 on gpu-9 at 1970-01-12 13:48:20 UTC (epoch 2" in str(fenced.value)
    assert [entry.step for entry in read(run).checkpoints] == [20]


def test_a_fenced_claim_stays_fenced_and_leaves_the_store_alone(run):
    old = claim_run(run, someone())
    claim_run(run, someone(), take_over=True).release()
    for _ in range(2):
        with pytest.raises(Fenced):
            old.set_job("x")
    with pytest.raises(Fenced):
        old.check()
    before = run.store.read("demo/HEAD.json")
    old.release()
    assert run.store.read("demo/HEAD.json") == before


def test_a_claim_is_confirmed_until_another_session_owns_the_run(run):
    claim = claim_run(run, someone(session="mine"))
    claim.confirm()
    claim_run(run, someone(session="mine"))  # a worker of the same session
    claim.confirm()
    claim_run(run, someone(session="other", host="b"), take_over=True)
    with pytest.raises(Fenced, match=r"taken over by pid .* on b"):
        claim.confirm()
    with pytest.raises(Fenced):
        claim.check()


def test_nothing_can_be_committed_after_a_release(run):
    claim = claim_run(run, someone())
    claim.release()
    with pytest.raises(Fenced, match="already released run"):
        claim.set_job("x")
    assert read(run).job is None


def test_a_run_deleted_under_its_owner_stops_it(run):
    claim = claim_run(run, someone())
    run.store.delete("demo/HEAD.json")
    with pytest.raises(Fenced, match=r"deleted, moved or renamed.* move it back"):
        claim.set_job("x")
    assert run.read() is None


LOST = pytest.mark.parametrize(
    "error", [Conflict("HEAD", ""), StoreError("write", "HEAD", "timeout")]
)


@LOST
def test_a_lost_acknowledgement_is_a_success_and_is_not_done_twice(tmp_path, error):
    store = Hooked(tmp_path)
    claim = claim_run(RunState(store, "demo"), someone())
    store.after = once(error)
    changes = []

    def change(head):
        changes.append(head)
        return dataclasses.replace(head, job="once")

    claim.commit(change)
    assert len(changes) == 1
    assert read(claim.state).job == "once"
    claim.set_job("and it goes on")


@LOST
def test_a_claim_whose_acknowledgement_is_lost_is_still_one_claim(tmp_path, error):
    store = Hooked(tmp_path)
    store.after = once(error)
    claim = claim_run(RunState(store, "demo"), someone())
    assert claim.epoch == 1
    claim.set_job("mine")
    assert read(claim.state).epoch == 1


def test_a_lost_acknowledgement_is_recognised_after_somebody_else_took_over(tmp_path):
    store = Hooked(tmp_path)
    claim = claim_run(RunState(store, "demo"), someone())

    def is_taken_over():
        claim_run(RunState(store, "demo"), someone(), take_over=True)
        raise Conflict("HEAD", "")

    store.after = once(is_taken_over)
    list_checkpoint(claim, an_entry(10))  # it was listed before the new owner came
    assert [entry.step for entry in read(claim.state).checkpoints] == [10]
    with pytest.raises(Fenced):
        list_checkpoint(claim, an_entry(20))


def test_a_store_that_is_down_fails_the_commit_which_can_be_tried_again(tmp_path):
    store = Hooked(tmp_path)
    claim = claim_run(RunState(store, "demo"), someone())
    store.before = once(StoreError("write", "HEAD", "503 Service Unavailable"))
    with pytest.raises(StoreError, match="503"):
        claim.set_job("x")
    claim.set_job("y")
    assert read(claim.state).job == "y"


def test_threads_of_one_claim_lose_no_commit(run):
    claim = claim_run(run, someone())

    def add(first):
        for step in range(first, first + 5):
            list_checkpoint(claim, an_entry(step))

    threads = [threading.Thread(target=add, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert len(read(run).checkpoints) == 15


def test_a_commit_keeps_what_another_writer_of_the_same_epoch_wrote(run, store):
    claim = claim_run(run, someone())
    twin = Claim(run, claim.head, Head(), "a copy with a lock of its own")

    class MeanwhileChanged:
        done = False

        def __call__(self, head):
            if not self.done:
                self.done = True
                list_checkpoint(twin, an_entry(1))
            return head.with_checkpoint(an_entry(2))

    claim.commit(MeanwhileChanged())
    assert [entry.step for entry in read(run).checkpoints] == [2, 1]


def test_histories_stay_bounded(run):
    claim = claim_run(run, someone())
    long = dataclasses.replace(
        claim.head,
        claims=claim.head.claims * CLAIMS_KEPT,
        write_ids=tuple(f"write-{i}" for i in range(WRITE_IDS_KEPT)),
    )
    claim.commit(lambda head: long)
    head = claim_run(run, someone(host="newest"), take_over=True).head
    assert len(head.claims) == CLAIMS_KEPT
    assert head.claims[0].owner.host == "newest"
    assert len(head.write_ids) == WRITE_IDS_KEPT
    assert head.write_ids[2] == "write-0"
