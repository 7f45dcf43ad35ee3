"""`pion watch` ends a job that makes no progress and submits it again, elsewhere if needed."""

import contextlib
import dataclasses

import pytest

from pion.errors import PionError
from pipeline.rent.managed.keep.keeper import PATIENT_CANCEL_SECONDS
from pipeline.rent.managed.keep.replace_rental import FUTILE_RESTARTS, Renter
from pipeline.rent.managed.look.diagnose import UNNOTICED_SECONDS
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS
from pipeline.rent.managed.request import submitting_alone
from pipeline.rent.managed.watch import follow_or_leave
from pipeline.state.claim import claim_run
from pipeline.state.rows.metrics import read_events
from tests.pipeline.rent.managed.look.test_diagnose import A40
from tests.support.fake_provider import (
    JOB,
    beat,
    during,
    fail_to_submit,
    lose_secrets,
    succeed,
    succeed_after,
)
from tests.support.states import someone

LOST = "the machine of the controller was restarted"


def test_a_place_where_machines_die_young_is_avoided_from_then_on(rental):
    now = rental.provider.now

    def recovered(times):
        return lambda: now("RUNNING", recoveries=times, recovered_at=rental.time.time)

    def recovering():
        now("RECOVERING")

    both = (recovering, recovered(1), recovering, recovered(2), recovering)
    during(rental.time, *both, succeed(rental.provider))
    rental.watcher.follow()
    assert rental.orders == ([7], [(7, {A40})])
    words = "restarted the run as managed job 8 and excluded A40 spot on RunPod/CA"
    assert words in rental.text


def test_a_job_that_may_go_nowhere_else_is_left_as_it_is(rental):
    rental.provider.only = A40
    rental.machines((900, "7"), (600, "7"), (300, "7"))
    rental.provider.now("RECOVERING")
    during(rental.time, lambda: None, succeed(rental.provider))
    rental.watcher.follow()
    assert rental.orders == ([], [])
    assert rental.text.count("the YAML allows nothing but that") == 1


def test_two_reasons_to_restart_make_one_restart(rental):
    rental.provider.listed = []
    rental.time.time += 3600  # since the run's last sign of life
    started_at = rental.time.time - BOOT_SECONDS + UNNOTICED_SECONDS
    rental.provider.now("RUNNING", started_at=started_at)
    rental.succeeds_when_submitted()
    rental.watcher.follow()
    assert len(rental.provider.submitted) == 1
    assert "boot not finished" not in rental.text  # that was wrong with the job before


def test_a_job_that_can_not_be_submitted_again_keeps_its_pod(rental):
    lose_secrets(rental.provider)
    rental.starts()
    succeed_after(rental.provider, rental.time, BOOT_SECONDS + 60)
    rental.watcher.follow()
    assert "HF_TOKEN must be set" in rental.text
    assert not rental.provider.terminated
    assert not rental.provider.cancelled


def test_a_pod_that_nobody_would_end_is_replaced_in_the_same_place_if_there_is_no_other(rental):
    rental.provider.only = A40
    rental.starts()
    rental.succeeds_when_submitted()
    rental.watcher.follow()
    assert (rental.provider.terminated, *rental.orders) == (["a"], [7], [(7, set())])


@pytest.mark.slow
def test_a_run_that_no_machine_ever_owns_is_given_up_in_the_end(rental):
    provider = rental.provider
    rental.starts()

    def boot_in_vain():
        for job in provider.jobs:
            if job.status == "RUNNING":
                provider.change(job.id, status="STARTING", submitted_at=rental.time.time)

    rental.time.during_sleep = boot_in_vain
    assert rental.watcher.follow() == 1
    assert len(provider.submitted) == FUTILE_RESTARTS
    assert provider.cancelled == [7, 8, 9, 10]
    assert "no machine has owned the run after 3 restarts" in rental.text
    assert not any(pod.alive for pod in provider.listed or ())


def test_a_run_at_work_is_watched_without_its_controller_and_restarted_when_it_ends(rental):
    claim, provider = claim_run(rental.run, someone()), rental.provider
    beat(claim, stage="sft", step=6)
    provider.now("FAILED_CONTROLLER", failure=LOST)
    start, rented_at = rental.time.time, []

    def live():
        if rental.time.time - start < 600:
            beat(claim, stage="sft", step=7)
        elif not provider.submitted:
            provider.listed = []
        if provider.submitted:
            rented_at.append(rental.time.time - start)
            provider.now("SUCCEEDED", id=8)

    rental.time.during_sleep = live
    assert rental.watcher.follow() == 0
    assert rented_at[0] >= 660
    assert not provider.terminated
    assert LOST in rental.text


def test_while_a_person_submits_the_run_it_is_not_submitted_again(rental):
    rental.provider.now("FAILED_CONTROLLER")
    other = contextlib.ExitStack()
    other.enter_context(submitting_alone(JOB.name))
    submitted_meanwhile = []

    def leave():
        submitted_meanwhile.append(len(rental.provider.submitted))
        other.close()

    during(rental.time, leave, lambda: rental.provider.now("SUCCEEDED", id=8))
    assert rental.watcher.follow() == 0
    assert (submitted_meanwhile, len(rental.provider.submitted)) == ([0], 1)
    assert "another process on this machine is submitting" in rental.text


def test_a_job_cancelled_for_a_restart_is_submitted_however_often_that_fails(rental):
    fail_to_submit(rental.provider, times=3)
    rental.starts(ago=BOOT_SECONDS)
    rental.succeeds_when_submitted()
    assert rental.watcher.follow() == 0
    assert rental.orders == ([7], [(7, {A40})])


def test_a_submission_that_only_seemed_to_fail_is_not_repeated(rental):
    provider, really_submit = rental.provider, rental.provider.submit

    def submit(task, name):
        really_submit(task, name)
        raise PionError("SkyPilot could not submit: timed out")

    provider.submit = submit
    rental.starts()
    looks_since = []

    def live():
        if provider.submitted:
            looks_since.append(rental.time.time)
        if len(looks_since) > 1:
            provider.now("SUCCEEDED")

    rental.time.during_sleep = live
    assert rental.watcher.follow() == 0
    assert len(provider.submitted) == 1


def test_a_job_that_another_process_submits_meanwhile_is_followed_and_not_submitted_again(
    rental, monkeypatch
):
    announce, provider = Renter.announce, rental.provider

    def submitted_elsewhere(renter, *announced):
        announce(renter, *announced)
        provider.jobs.append(dataclasses.replace(JOB, id=8))

    monkeypatch.setattr(Renter, "announce", submitted_elsewhere)
    rental.starts()

    def live():
        if provider.cancelled and any(job.id == 8 for job in provider.jobs):
            provider.now("SUCCEEDED")

    rental.time.during_sleep = live
    assert rental.watcher.follow() == 0
    assert rental.orders == ([7], [])


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["cancel", "managed_jobs"])
def test_a_job_that_is_cancelled_is_submitted_again_even_if_its_end_could_not_be_seen(
    rental, fails
):
    provider = rental.provider
    failures = [PionError("SkyPilot could not: timed out") for _ in range(3)]
    really_cancel, really_list = provider.cancel, provider.managed_jobs

    def cancel(ids):
        really_cancel(ids)
        if fails == "cancel" and failures:
            raise failures.pop()

    def managed_jobs(name, **more):
        if fails == "managed_jobs" and provider.cancelled and failures:
            raise failures.pop()
        return really_list(name, **more)

    provider.cancel, provider.managed_jobs = cancel, managed_jobs
    rental.starts()
    rental.succeeds_when_submitted()
    assert rental.watcher.follow() == 0
    assert rental.orders == ([7], [(7, {A40})])


def test_a_job_that_ends_well_before_it_could_be_cancelled_is_not_submitted_again(rental):
    rental.provider.cancel = lambda ids: rental.provider.now("SUCCEEDED")
    rental.starts()
    rental.succeeds_when_submitted()
    assert rental.watcher.follow() == 0
    assert not rental.provider.submitted
    assert "managed job 7 was already over (SUCCEEDED), so it was not restarted" in rental.text


def test_one_look_submits_what_it_has_ended_though_that_fails_at_first(rental):
    fail_to_submit(rental.provider, times=3)
    rental.provider.now("FAILED_CONTROLLER")
    assert rental.watcher.look_once() == 1
    assert rental.provider.submitted == [(7, set())]


def test_one_look_that_can_not_submit_what_it_has_ended_says_so(rental):
    fail_to_submit(rental.provider, times=1000)
    rental.provider.now("FAILED_CONTROLLER")
    start = rental.time.time
    with pytest.raises(PionError, match=r"timed out Pion was cancelling .*pion launch") as e:
        rental.watcher.look_once()
    assert f"`pion rentals {rental.run.store.url}/demo`" in str(e.value)
    assert rental.time.time - start < PATIENT_CANCEL_SECONDS + 60


def test_a_lost_controller_without_the_secrets_for_a_restart_ends_the_watch(rental):
    lose_secrets(rental.provider)
    claim_run(rental.run, someone())
    rental.provider.now("FAILED_CONTROLLER")
    assert rental.watcher.follow() == 1
    assert "HF_TOKEN must be set" in rental.text


def test_a_restart_that_is_impossible_is_reported_once(rental):
    lose_secrets(rental.provider)
    claim_run(rental.run, someone())
    rental.provider.listed = []
    succeed_after(rental.provider, rental.time, UNNOTICED_SECONDS + 60)
    assert rental.watcher.follow() == 0
    assert not rental.provider.cancelled
    assert rental.text.count("HF_TOKEN must be set") == 1
    events = read_events(rental.run.store, rental.run.name)
    assert [event["event"] for event in events].count("watch") == 1


def test_ctrl_c_while_the_run_is_restarted_does_not_say_that_it_continues(rental, capsys):
    def submit(task, name):
        raise KeyboardInterrupt

    rental.provider.submit = submit
    rental.provider.now("FAILED_CONTROLLER")
    claim_run(rental.run, someone())
    assert follow_or_leave(rental.run, JOB.name, JOB.id, rental.provider) == 130
    out = capsys.readouterr().out
    assert "continues\n" not in out
    assert "Pion was cancelling managed job 7 to restart the run" in out
    assert f"pion rentals {rental.run.store.url}/demo" in out
