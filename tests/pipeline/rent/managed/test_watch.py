"""`pion watch`: how it fixes what is wrong with a rental, and what it tells the user."""

import contextlib
import dataclasses
import sys

import httpx
import pytest
import yaml

from pion.errors import PionError
from pipeline.cli import main
from pipeline.rent.managed.look.diagnose import HANG_SECONDS, LOST_BOOT_SECONDS
from pipeline.rent.managed.names import rental_name
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS
from pipeline.rent.managed.request import rental_lock
from pipeline.rent.managed.watch import Watcher, follow_or_leave, watch
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import ask_stop
from pipeline.state.rows.metrics import EventLog, read_events
from pipeline.state.stores import StoreError
from pipeline.web.address import Address
from tests.pipeline.rent.managed.look.test_diagnose import job
from tests.support.fake_provider import (
    JOB,
    FakeProvider,
    beat,
    during,
    succeed,
    succeed_after,
    succeed_when_submitted,
)
from tests.support.light_run import JOB as LIGHT
from tests.support.states import someone
from tests.support.waiting import PATIENCE_SECONDS

TASK = "name: pion-demo\n---\nenvs:\n  PION_LAUNCH_ID: 0123abcd\nrun: pion run\n"


def test_a_job_that_ends_well_is_followed_to_its_end(watcher, provider, run, time, said):
    claim = claim_run(run, someone(host="pod-1"))

    def train():
        beat(claim, stage="sft", step=6, steps=10, loss=1.25, tokens_per_second=900.0)

    during(time, train, lambda: claim.release(), succeed(provider))
    assert watcher.follow() == 0
    text = "\n".join(said)
    assert "managed job 7: RUNNING on RunPod CA, 1x[spot](A40:1, cpus=9, mem=50)" in text
    assert "on pod-1 owns the run (epoch 3)" in text
    assert "sft step 6/10, loss 1.2500, 900 tokens/s, saved: sft step 5" in text
    assert "managed job 7 is done" in said[-1]
    assert not provider.terminated
    assert not provider.cancelled


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ("Job exited with exit code 4 (user program failure).", 4, "stopped, with its state saved"),
        ("Job exited with exit code 2 (user program failure).", 2, "failed with exit code 2"),
        ("Task exited with exit codes [3] (…)", 3, "failed with exit code 3"),
        ("To see the details, run: …", 1, "stopped with status FAILED"),
    ],
)
def test_a_job_that_fails_gives_its_exit_code_and_where_its_output_is(
    watcher, provider, said, failure, code, words
):
    provider.now("FAILED", failure=failure)
    assert watcher.follow() == code
    assert words in said[-1]
    assert "sky jobs logs 7" in said[-1]


def test_a_rental_that_ended_without_its_machine_saying_so_is_over_for_other_computers(
    watcher, provider, run
):
    write_rental_note(run, RentalNote(0.0, "desk", "1a2b3c4d", "0123abcd", 1), None)
    provider.now("FAILED_NO_RESOURCE", task=TASK)
    watcher.follow()
    assert read_rental_note(run)[0] is None


def test_a_window_that_only_shows_a_rental_does_not_withdraw_its_note(run, provider, said):
    write_rental_note(run, RentalNote(0.0, "desk", "1a2b3c4d", "0123abcd", 1), None)
    provider.now("CANCELLED", task=TASK)  # by another window, which restarts the run
    onlooker = Watcher(run, JOB.name, JOB.id, said.append, provider, acting=False)
    onlooker.follow()
    assert read_rental_note(run)[0] is not None


def test_a_run_that_was_stopped_after_its_controller_was_lost_ends_with_4_and_without_a_machine(
    watcher, provider, run, time
):
    claim = claim_run(run, someone())
    beat(claim, stage="sft", step=6)
    provider.now("FAILED_CONTROLLER")

    def stop():
        ask_stop(run, "pion stop")
        claim.release()

    during(time, lambda: None, stop)
    assert watcher.follow() == 4
    assert (provider.terminated, provider.submitted) == (["a"], [])


def test_a_dead_pod_is_terminated_at_the_first_look_and_the_run_remembers_why(
    watcher, provider, run, time, said
):
    claim_run(run, someone())
    provider.listed = [provider.pod("x", "EXITED"), provider.pod("other", "EXITED", job_id=8)]
    during(time, succeed(provider))
    watcher.follow()
    assert provider.terminated == ["x"]
    text = "\n".join(said)
    assert "dead pod: pod x is EXITED in RunPod's list while SkyPilot says RUNNING" in text
    (event,) = [e for e in read_events(run.store, run.name) if e["event"] == "watch"]
    assert (event["what"], event["done"]) == ("dead pod", ["terminated pod x"])


def test_the_error_of_an_attempt_is_said_once_its_run_is_released(
    watcher, provider, run, time, said
):
    claim = claim_run(run, someone())
    events = EventLog(run.store, run.name, claim.epoch)
    events.append("end", code=1, message="it went wrong", stage="sft", step=3)
    events.flush()
    claim.release()
    during(time, lambda: None, lambda: provider.now("FAILED"))
    watcher.follow()
    (line,) = [line for line in said if "it went wrong" in line]
    assert "with exit code 1, in sft step 3: " in line


def test_a_second_window_only_says_what_is_wrong(run, provider, time, said):
    provider.listed = [provider.pod("x", "EXITED")]
    onlooker = Watcher(run, JOB.name, JOB.id, said.append, provider, acting=False)
    during(time, lambda: None, lambda: None, succeed(provider))
    onlooker.follow()
    assert not provider.terminated
    assert len([line for line in said if "dead pod" in line]) == 1  # not at every look


def test_only_one_window_keeps_a_rental_going():
    with (
        rental_lock("pion-demo") as first,
        rental_lock("pion-demo") as second,
        rental_lock("pion-other") as other,
    ):
        assert (first(), second(), other()) == (True, False, True)
        assert (first(), second()) == (True, False)
    with rental_lock("pion-demo") as again:
        assert again()


def test_a_second_window_acts_once_the_first_has_gone(run, provider, time, capsys):
    provider.listed = [provider.pod("x", "EXITED")]
    first = contextlib.ExitStack()
    assert first.enter_context(rental_lock(JOB.name))()
    done_while_the_first_acted = []

    def leave():
        done_while_the_first_acted.extend(provider.terminated)
        first.close()

    during(time, leave, succeed(provider))
    assert follow_or_leave(run, JOB.name, JOB.id, provider) == 0
    assert not done_while_the_first_acted
    assert provider.terminated == ["x"]
    out = capsys.readouterr().out
    assert "another window restarts this run if it fails" in out
    assert "the other window has closed. From now on, this window restarts the run" in out


def test_heartbeats_without_a_step_for_a_quarter_of_an_hour_are_a_hang(
    watcher, provider, run, time, said
):
    claim = claim_run(run, someone())
    start = time.time

    def live():
        beat(claim, stage="sft", step=6)
        if provider.terminated:
            provider.now("SUCCEEDED")

    time.during_sleep = live
    watcher.follow()
    assert provider.terminated == ["a"]
    assert HANG_SECONDS <= time.time - start < HANG_SECONDS + 60
    assert "hang: the heartbeat continues, but there has been no step for 15 min" in "\n".join(said)


@pytest.mark.slow
def test_a_run_whose_store_was_down_may_catch_up_before_it_counts_as_hanging(
    watcher, provider, run, time
):
    claim = claim_run(run, someone())
    start = time.time

    def live():
        since = time.time - start
        if not 100 < since < 2000:  # no heartbeat gets through in between
            beat(claim, stage="sft", step=6)
        if since > 2000 + HANG_SECONDS - 60:
            provider.now("SUCCEEDED")

    time.during_sleep = live
    watcher.follow()
    assert not provider.terminated


def test_evaluation_at_the_end_is_no_hang(watcher, provider, run, time):
    claim = claim_run(run, someone())  # its status names no step
    start = time.time

    def live():
        claim.heartbeat.beat()
        if time.time - start > HANG_SECONDS + 120:
            provider.now("SUCCEEDED")

    time.during_sleep = live
    watcher.follow()
    assert not provider.terminated


def test_a_pod_that_is_lost_while_it_boots_is_not_waited_for_forever(watcher, provider, time):
    provider.now("STARTING", submitted_at=time.time)
    start = time.time

    def live():
        if time.time - start > 60:
            provider.listed = []
        if provider.submitted:
            provider.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (provider.cancelled, provider.submitted) == ([7], [(7, set())])
    assert LOST_BOOT_SECONDS <= time.time - start < LOST_BOOT_SECONDS + 120


@pytest.mark.slow
def test_a_pod_that_comes_after_a_long_wait_gets_the_full_time_to_boot(
    watcher, provider, time, said
):
    provider.listed = []
    provider.now("STARTING", submitted_at=time.time)
    start = time.time

    def live():
        if time.time - start > 2 * BOOT_SECONDS and not provider.listed:
            provider.listed = [provider.pod("late", "CREATED")]
        if time.time - start > 3 * BOOT_SECONDS - 60:
            provider.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert not provider.terminated
    assert not provider.submitted
    assert "no machine available" in "\n".join(said)


def test_a_pod_that_can_not_see_the_request_to_stop_is_ended_with_its_job(
    watcher, provider, run, time, said
):
    ask_stop(run, "pion stop")
    provider.now("STARTING", submitted_at=time.time)
    start = time.time
    succeed_after(provider, time, 2 * BOOT_SECONDS)
    assert watcher.follow() == 4
    assert BOOT_SECONDS <= time.time - start < BOOT_SECONDS + 60
    assert (provider.terminated, provider.cancelled, provider.submitted) == (["a"], [7], [])
    assert "terminated pod a; cancelled managed job 7" in "\n".join(said)


def test_a_run_that_has_hopped_is_not_taken_for_one_that_was_asked_to_stop(
    watcher, provider, run, time
):
    claim_run(run, someone(launch_id="launch-old")).release()
    ask_stop(run, "pion hop to pod-new", except_launch="0123abcd")
    provider.now("STARTING", submitted_at=time.time, task=TASK)
    succeed_when_submitted(provider, time)
    assert watcher.follow() == 0
    assert (provider.cancelled, len(provider.submitted)) == ([7], 1)  # restarted, not ended


def test_a_window_that_follows_a_run_goes_with_it_when_it_hops(watcher, provider, time, said):
    def hop():
        provider.jobs.append(dataclasses.replace(JOB, id=8))

    def old_one_ends():
        provider.jobs[0] = job("FAILED", failure="Job exited with exit code 4")

    def done():
        provider.jobs[1] = dataclasses.replace(JOB, id=8, status="SUCCEEDED")

    during(time, hop, old_one_ends, done)
    assert watcher.follow() == 0
    assert "managed job 8 is done" in said[-1]


def test_a_failed_look_is_reported_once_and_repeated(watcher, provider, time, said):
    provider.down = True

    def back():
        provider.down = False

    during(time, lambda: None, lambda: None, back, succeed(provider))
    assert watcher.follow() == 0
    assert len([line for line in said if "something failed, and is tried again" in line]) == 1


def test_a_job_that_skypilot_does_not_list_can_not_be_judged(watcher, provider):
    provider.jobs = []
    with pytest.raises(PionError, match="no longer lists managed job 7"):
        watcher.look_once()


def test_a_store_that_is_down_ends_no_watch(watcher, provider, run, time, monkeypatch):
    read = run.store.read_versioned

    def down(key):
        raise StoreError("read", key, "no route to host")

    monkeypatch.setattr(run.store, "read_versioned", down)
    during(time, lambda: monkeypatch.setattr(run.store, "read_versioned", read), succeed(provider))
    assert watcher.follow() == 0


def test_one_look_returns_1_if_anything_is_wrong_and_fixes_it(watcher, provider):
    assert watcher.look_once() == 0
    provider.listed = [provider.pod("x", "EXITED")]
    assert watcher.look_once() == 1
    assert provider.terminated == ["x"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo", "has rented nothing for"),
        ("nothing", "no run 'nothing'"),
        ("/dev/null", "no run 'null' in the store file:///dev"),
    ],
)
def test_a_run_that_was_never_rented_is_refused_before_skypilot_is_loaded(
    run, monkeypatch, capsys, name, words
):
    claim_run(run, someone())
    monkeypatch.setitem(sys.modules, "pipeline.rent.managed.watch", None)  # an import fails
    where = name if name.startswith("/") else f"{run.store.url}/{name}"
    assert main(["watch", where]) == 2
    assert words in capsys.readouterr().err


def test_the_page_is_there_while_the_watch_acts(run, monkeypatch, capsys):
    claim_run(run, someone())
    name = rental_name(run.store.url, run.name)
    provider = FakeProvider(dataclasses.replace(JOB, name=name, status="SUCCEEDED"))
    shown = []

    def look_at_the_page():
        url = capsys.readouterr().out.partition("  the page of this run")[0]
        shown.append(httpx.get(f"{url}/data", timeout=PATIENCE_SECONDS).json()["runs"][0]["url"])
        return []

    monkeypatch.setattr(provider, "list_pods", look_at_the_page)
    assert watch(run.url, once=False, page=Address(port=0), provider=provider) == 0
    assert shown == [run.url]


def test_ctrl_c_names_the_job_that_continues(run, provider, time, capsys):
    def leave():
        raise KeyboardInterrupt

    claim_run(run, someone())
    provider.now("FAILED_CONTROLLER")  # so the run is restarted
    during(time, leave)
    assert follow_or_leave(run, JOB.name, JOB.id, provider) == 0
    out = capsys.readouterr().out
    assert "managed job 8 continues" in out
    assert "sky jobs logs 8" in out
    assert f"pion stop {run.store.url}/demo" in out


def test_a_pod_that_costs_more_than_planned_is_said_once_and_left_to_itself(
    watcher, provider, time, said
):
    task = "name: pion-demo\n---\nenvs:\n  PION_PRICES: '{\"A40\": 0.09}'\nrun: pion run\n"
    provider.change(JOB.id, task=task)
    during(time, lambda: None, succeed(provider))
    watcher.follow()
    (line,) = [line for line in said if "higher price" in line]
    assert "pod a costs $0.36 per hour, 4.00 times the planned $0.09" in line
    assert not provider.terminated
    assert not provider.cancelled


# ---------------------------------------------------------------- a rental that ends after a stage

UNTIL_SFT = "name: pion-demo\n---\nenvs:\n  PION_LAUNCH_ID: l\n  PION_UNTIL: sft\nrun: pion run\n"


@pytest.fixture
def claim(run, provider, time):
    """The machine of a rental until sft has claimed the run."""
    provider.now("RUNNING", task=UNTIL_SFT)
    claim = claim_run(run, someone(launch_id="l"))
    beat(claim, stage="sft", step=6)
    return claim


def finish(claim):
    claim.finish_stage("sft", "d", {})
    claim.release()


def test_it_is_over_and_the_next_stage_is_said(watcher, provider, claim, time, said):
    during(time, lambda: finish(claim), succeed(provider))
    assert watcher.follow() == 0
    assert "managed job 7 is done" in said[-2]
    assert "next: evaluate. Rent a machine for it: pion launch JOB --on SKY" in said[-1]
    assert (provider.submitted, provider.cancelled, provider.terminated) == ([], [], [])


def test_a_controller_that_is_lost_after_its_last_stage_is_not_replaced(
    watcher, provider, claim, said
):
    finish(claim)
    provider.now("FAILED_CONTROLLER")
    assert watcher.follow() == 0
    assert provider.submitted == []
    assert provider.terminated == ["a"], "nobody else would end it"
    assert "next: evaluate" in said[-1]


def test_a_machine_that_skypilot_seeks_after_its_last_stage_is_not_needed(
    watcher, provider, claim, said
):
    finish(claim)
    provider.now("RECOVERING")
    provider.listed = []
    watcher.look_once()
    assert provider.cancelled == [7]
    assert "The run has done sft, so Pion will not rent a new machine" in "\n".join(said)


def test_a_stage_that_was_done_before_is_done_again_to_its_end(run, watcher, provider, time):
    """It was done under other settings, or the machine would not have claimed the run."""
    finish(claim_run(run, someone()))
    time.time += 60
    claim_run(run, someone(launch_id="l")).heartbeat.beat()
    provider.now("RECOVERING", task=UNTIL_SFT)
    provider.listed = []
    watcher.look_once()
    assert provider.cancelled == []


def test_a_finished_run_that_is_launched_again_is_not_over_for_the_new_job(run, watcher, provider):
    """The job may have more to do now. The store knows only once the new machine has claimed."""
    run.write_job("0123", yaml.safe_dump(LIGHT))
    claim = claim_run(run, someone(launch_id="before"))
    claim.set_job("0123")
    for stage in ("prepare", "pretrain", "sft", "evaluate", "publish"):
        claim.finish_stage(stage, "d", {})
    claim.release()
    provider.now("STARTING", task=UNTIL_SFT.replace("  PION_UNTIL: sft\n", ""))
    provider.listed = []
    watcher.look_once()
    assert provider.cancelled == []
