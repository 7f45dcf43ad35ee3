"""Which checkpoints are kept, and which one is the best; a listed checkpoint is never deleted."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.errors import BadInput, Fenced
from pipeline.state.checkpoints.retention import (
    Keep,
    final_checkpoint,
    forget,
    kept,
    selected,
    sweep,
    sweep_abandoned,
)
from pipeline.state.claim import claim_run
from pipeline.state.head import Head, StageRecord
from pipeline.state.run_state import RunState
from tests.support.clock import FakeClock
from tests.support.far_store import FarStore
from tests.support.hooked_store import Hooked, once
from tests.support.jobs import tiny_job
from tests.support.states import an_entry, list_checkpoint, someone

HOUR = 3600.0


def steps(keys, stage="pretrain"):
    prefix = f"checkpoints/{stage}/"
    return sorted(int(k.removeprefix(prefix).split("-")[0]) for k in keys if k.startswith(prefix))


def a_head(*entries):
    """Entries in the order they were saved."""
    return Head(epoch=1, checkpoints=tuple(reversed(entries)))


def store_checkpoint(claim, entry):
    for name in ("model.safetensors", "manifest.json"):
        claim.store.write(claim.state.key(f"{entry.key}/{name}"), b"x")


def stored_folders(store):
    keys = (entry.key.removeprefix("demo/") for entry in store.list("demo/checkpoints/"))
    return sorted({key.rpartition("/")[0] for key in keys})


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        *((Keep(last=last), [110, 120]) for last in (0, 1, 2)),
        (Keep(last=3), [100, 110, 120]),
        (Keep(every=50), [50, 100, 110, 120]),
    ],
)
def test_the_last_k_and_every_nth_step_are_kept_and_always_the_newest_two(keep, expected):
    head = a_head(*(an_entry(step) for step in range(10, 130, 10)))
    assert steps(kept(head, keep)) == expected


def test_each_stages_best_is_kept_and_one_without_a_number_is_never_best():
    losses = [3.0, 2.0, 2.5, 2.6, 2.7, float("nan")]
    head = a_head(
        an_entry(5),
        *(an_entry(10 * i, metrics={"loss": loss}) for i, loss in enumerate(losses, 1)),
        an_entry(1, stage="sft", metrics={"loss": 9.0}),
        an_entry(2, stage="sft", metrics={"loss": 8.0}),
    )
    keys = kept(head, Keep(best="loss"))
    assert steps(keys) == [20]
    assert steps(keys, "sft") == [1, 2]


def test_every_finished_stages_last_is_kept_through_the_stages_that_follow():
    head = a_head(*(an_entry(s) for s in (10, 20)), *(an_entry(s, stage="sft") for s in (1, 2, 3)))
    finished = head.with_stage("pretrain", StageRecord("d", 1.0, "checkpoints/pretrain/20-1"))
    assert steps(kept(finished, Keep())) == [20]
    assert steps(kept(finished, Keep()), "sft") == [2, 3]


entries = st.lists(
    st.builds(
        lambda step, epoch, stage, loss: an_entry(step, epoch, stage, metrics={"loss": loss}),
        st.integers(1, 30),
        st.integers(1, 3),
        st.sampled_from(["pretrain", "sft"]),
        st.floats(allow_infinity=True),
    ),
    unique_by=lambda entry: entry.key,
    max_size=12,
)
policies = st.builds(
    Keep,
    last=st.integers(0, 4),
    every=st.none() | st.integers(1, 10),
    best=st.sampled_from([None, "loss", "accuracy"]),
)


@settings(deadline=None)
@given(entries, policies)
def test_forgetting_loses_no_entry_it_only_moves_some_to_the_trash(saved, keep):
    head = a_head(*saved)
    after = forget(head, keep, now=100.0)
    listed, trash = after.listed(), {item.key for item in after.trash}
    assert listed | trash == head.listed()
    assert not listed & trash
    assert {entry.key for entry in head.checkpoints[:2]} <= listed
    assert [e for e in head.checkpoints if e in after.checkpoints] == list(after.checkpoints)
    assert all(item.not_before == 100.0 + HOUR for item in after.trash)
    assert forget(after, keep, now=200.0) == after


def test_files_stay_for_an_hour_after_their_entry_is_removed(run, store, time):
    claim = claim_run(run, someone())
    for step in (10, 20, 30):
        store_checkpoint(claim, an_entry(step))
        list_checkpoint(claim, an_entry(step))
    claim.commit(lambda head: forget(head, Keep(), time.time))
    time.time += HOUR - 1
    assert sweep(claim) == []
    assert len(stored_folders(store)) == 3
    time.time += 1
    assert sweep(claim) == ["checkpoints/pretrain/10-1"]
    assert stored_folders(store) == ["checkpoints/pretrain/20-1", "checkpoints/pretrain/30-1"]
    assert claim.head.trash == ()
    before = store.read("demo/HEAD.json")
    assert sweep(claim) == []
    assert store.read("demo/HEAD.json") == before


class Service(FarStore):
    """A store whose service has a clock."""

    time = 1e9

    def service_time(self):
        return self.time


@pytest.mark.parametrize("wrong", [-10 * HOUR, 10 * HOUR, 1e9])
def test_trash_that_a_machine_with_a_wrong_clock_has_marked_stays_for_an_hour(wrong, tmp_path):
    store = Service(tmp_path)
    wrong_clock, right_clock = FakeClock(), FakeClock()
    wrong_clock.time, right_clock.time = Service.time + wrong, Service.time
    run = RunState(store, "demo", wrong_clock.clock())
    claim = claim_run(run, someone())
    for step in (10, 20, 30):
        store_checkpoint(claim, an_entry(step))
        list_checkpoint(claim, an_entry(step))
    claim.commit(lambda head: forget(head, Keep(), claim.store_now()))
    assert sweep(claim) == []
    run = RunState(store, "demo", right_clock.clock())
    later = claim_run(run, someone(), take_over=True)
    assert sweep(later) == []
    store.time, right_clock.time = Service.time + HOUR - 1, Service.time + HOUR - 1
    assert sweep(later) == []
    store.time, right_clock.time = Service.time + HOUR, Service.time + HOUR
    assert sweep(later) == ["checkpoints/pretrain/10-1"]


def test_a_listed_folder_is_not_deleted_although_it_is_in_the_trash(run, store, time):
    claim = claim_run(run, someone())
    entry = an_entry(10)
    store_checkpoint(claim, entry)
    claim.commit(lambda head: head.with_trash([entry.key], time.time))
    trash = claim.head.trash
    claim.commit(lambda head: dataclasses.replace(head.with_checkpoint(entry), trash=trash))
    time.time += 2 * HOUR
    assert sweep(claim) == []
    assert stored_folders(store) == [entry.key]


def test_a_claim_sweeps_what_older_epochs_left_unlisted_an_hour_later(run, store, time):
    old = claim_run(run, someone())
    listed, finished, unlisted = an_entry(10), an_entry(20), an_entry(30)
    for entry in (listed, finished, unlisted):
        store_checkpoint(old, entry)
    list_checkpoint(old, listed)
    old.finish_stage("pretrain", "d", {}, finished.key)
    claim = claim_run(run, someone(), take_over=True)
    store_checkpoint(claim, an_entry(40, epoch=2))  # being written right now

    assert sweep_abandoned(claim) == [unlisted.key]
    assert sweep(claim) == []
    assert len(stored_folders(store)) == 4
    time.time += HOUR
    assert sweep_abandoned(claim) == []
    assert sweep(claim) == [unlisted.key]
    assert stored_folders(store) == [listed.key, finished.key, "checkpoints/pretrain/40-2"]


def test_a_sweep_that_was_cut_short_is_finished_by_the_next_owner(run, store, time):
    class Killed(BaseException):
        pass

    dying = Hooked(store.folder)
    dying.after = once(Killed(), "delete")
    claim = claim_run(RunState(dying, "demo", time.clock()), someone())
    store_checkpoint(claim, an_entry(10))
    claim.commit(lambda head: head.with_trash([an_entry(10).key], time.time))
    time.time += HOUR
    with pytest.raises(Killed):
        sweep(claim)
    (left,) = store.list("demo/checkpoints/")
    assert left.key.endswith("/model.safetensors")  # the manifest went first
    assert sweep(claim_run(run, someone(), take_over=True)) == [an_entry(10).key]
    assert stored_folders(store) == []


def test_a_fenced_claim_deletes_nothing(run, store, time):
    claim = claim_run(run, someone())
    store_checkpoint(claim, an_entry(10))
    claim.commit(lambda head: head.with_trash([an_entry(10).key], time.time))
    claim_run(run, someone(), take_over=True)
    with pytest.raises(Fenced):
        claim.set_job("x")
    time.time += HOUR
    with pytest.raises(Fenced):
        sweep(claim)
    assert stored_folders(store) == [an_entry(10).key]


def test_temporary_files_of_dead_writers_go_an_hour_after_they_were_touched(run, store, time):
    claim = claim_run(run, someone())
    leftover = store.folder / "demo" / ".tmp-0123"
    leftover.write_bytes(b"half a file")
    time.time = leftover.stat().st_mtime + HOUR - 1
    sweep_abandoned(claim)
    assert leftover.exists()
    time.time += 2
    sweep_abandoned(claim)
    assert not leftover.exists()


# ---------------------------------------------------------------- the best one


def job_for(checkpoint="best"):
    return tiny_job(evaluate__checkpoint=checkpoint)


def entry(step, loss, stage="sft", digest="d", epoch=1):
    metrics = {} if loss is None else {"held_out_loss": loss}
    return an_entry(step, epoch, stage, digest=digest, metrics=metrics)


def head_with(*entries):
    """Return HEAD of a run whose sft is finished at the first of `entries`, newest first."""
    return Head(checkpoints=entries).with_stage("sft", StageRecord("d", 0.0, entries[0].key))


def test_the_lowest_held_out_loss_of_the_last_stage_wins():
    pretrained = entry(9, 0.5, "pretrain")  # a lower loss, of other rows
    head = head_with(entry(6, 3.0), entry(4, 2.0), entry(2, 2.5), pretrained)
    assert selected(job_for(), head).result() == {
        "step": 4,
        "held_out_loss": 2.0,
        "last_step": 6,
        "last_held_out_loss": 3.0,
    }


@pytest.mark.parametrize(
    ("older", "wins"),
    [
        ([entry(4, 2.0), entry(2, 2.0)], 4),  # of equal losses the newest
        ([entry(4, 2.0, epoch=5), entry(2, 2.5, epoch=9)], 4),
        ([entry(4, None), entry(2, 9.0)], 6),
        ([entry(4, math.nan), entry(2, 9.0)], 6),
        ([entry(4, -math.inf), entry(2, 9.0)], 6),
        ([entry(4, 1.0, digest="other")], 6),
    ],
    ids=["equal", "of another epoch", "no loss", "NaN", "infinite", "under other settings"],
)
def test_only_numbers_under_the_same_settings_count(older, wins):
    assert selected(job_for(), head_with(entry(6, 3.0), *older)).best.step == wins


def test_without_being_asked_for_the_last_one_is_meant():
    head = head_with(entry(6, 3.0), entry(4, 2.0))
    assert selected(job_for("last"), head) is None
    assert final_checkpoint(job_for("last"), head) == "checkpoints/sft/6-1"
    evaluated = head.with_stage("evaluate", StageRecord("e", 0.0, "checkpoints/sft/4-1"))
    assert final_checkpoint(job_for(), evaluated) == "checkpoints/sft/4-1"


def test_a_run_that_was_trained_without_it_says_so():
    head = head_with(entry(6, None), entry(4, 2.0))
    with pytest.raises(BadInput, match=r"sft was trained without it.*evaluate\.checkpoint=last"):
        selected(job_for(), head)
