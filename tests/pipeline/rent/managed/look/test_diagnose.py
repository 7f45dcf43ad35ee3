"""What is wrong with a rental, from what SkyPilot, RunPod and the run's store say."""

import dataclasses

import pytest

from pipeline.rent.managed.look.diagnose import (
    HANG_SECONDS,
    LOST_BOOT_SECONDS,
    SILENT_SECONDS,
    UNNOTICED_SECONDS,
    Attempt,
    JobView,
    RunView,
    diagnose,
)
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS, Place
from pipeline.rent.managed.provider.pods import Pod
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS
from tests.support.fake_provider import JOB, NOW

A40 = Place("RunPod", "CA", "A40", spot=True)
A4000 = Place("RunPod", "CA", "RTXA4000", spot=True)
ALIVE, EXITED = Pod("a", "", "RUNNING"), Pod("x", "", "EXITED")
AT_WORK = RunView(claimed_at=NOW - 7000, beat_at=NOW - 5, last_sign=NOW - 60)


def job(status, **changes):
    return dataclasses.replace(JOB, status=status, **changes)


def run(**changes):
    return dataclasses.replace(AT_WORK, **changes)


def in_a_row(place, *ages):
    """Return machines that were rented these numbers of seconds ago."""
    return tuple(Attempt(place, NOW - age) for age in ages)


CONTROLLER_LOST = job("FAILED_CONTROLLER", failure="out of memory")
LEFT_BEHIND = job("FAILED_CONTROLLER", failure="Failed to clean up, resources may have leaked: …")
EVERYWHERE = tuple(
    Attempt(place, NOW - age)
    for place, age in zip([A40, A4000, A40, A4000, A40], [2000, 1600, 1200, 800, 400], strict=True)
)
GONE_QUIET = run(beat_at=NOW - 61)
# On a store where only a commit is a sign of life.
COMMITTED = run(beat_at=None, heartbeats=False, last_sign=NOW - COMMIT_SILENCE_SECONDS + 1)
SILENT = run(beat_at=NOW - SILENT_SECONDS, last_sign=NOW - SILENT_SECONDS)
WAITING = run(beat_at=NOW - BOOT_SECONDS - 60, last_sign=NOW - BOOT_SECONDS - 60)
BOOTING = run(claimed_at=None, beat_at=None, last_sign=None)
JUST_RECOVERED = job("RUNNING", recovered_at=NOW - 30)
NOT_STARTED = job("RUNNING", recovered_at=NOW - BOOT_SECONDS)
# On a store without heartbeats, a new machine waits for a silent owner before it takes over.
TAKING_OVER = job("RUNNING", recovered_at=NOW - BOOT_SECONDS - COMMIT_SILENCE_SECONDS)
WAITING_LONG = run(beat_at=None, last_sign=NOW - 9000, heartbeats=False)


RECOVERING = job("RECOVERING")
STOPPED, DONE = run(stop="pion stop"), run(finished=True)
HANGS = run(stalled_since=NOW - HANG_SECONDS)
ENDED_BOOT = dataclasses.replace(BOOTING, finished=True)

WRONG = [
    # SkyPilot needs minutes to judge a stopped pod, so the pod is terminated at once.
    (JobView(JOB, AT_WORK, (EXITED,)), "dead pod", "terminate", ("x",)),
    (JobView(RECOVERING, AT_WORK, (EXITED,)), "dead pod", "terminate", ("x",)),
    # SkyPilot would continue to call the job RUNNING, so the job is restarted.
    (JobView(JOB, AT_WORK, (), NOW - UNNOTICED_SECONDS), "loss not noticed", "relaunch", ()),
    # SkyPilot does not notice either that the pod it waits for will never come.
    (JobView(RECOVERING, AT_WORK, (), NOW - LOST_BOOT_SECONDS), "loss not noticed", "relaunch", ()),
    # A boot that never ends: SkyPilot would wait for this pod forever.
    (JobView(job("STARTING", submitted_at=NOW - BOOT_SECONDS), BOOTING, (ALIVE,)),
     "boot not finished", "relaunch", ("a",)),
    (JobView(RECOVERING, WAITING, (ALIVE,)), "boot not finished", "relaunch", ("a",)),
    # The job runs, but never claims the run. Once its pod is gone, SkyPilot recovers it.
    (JobView(NOT_STARTED, WAITING, (ALIVE,)), "boot not finished", "terminate", ("a",)),
    (JobView(NOT_STARTED, WAITING, None), "boot not finished", "relaunch", ()),
    (JobView(TAKING_OVER, WAITING_LONG, (ALIVE,)), "boot not finished", "terminate", ("a",)),
    # After a long wait for a pod, the pod still gets BOOT_SECONDS, but no more.
    (JobView(RECOVERING, WAITING, (ALIVE,), pod_since=NOW - BOOT_SECONDS),
     "boot not finished", "relaunch", ("a",)),
    # The watcher has just started, and the pod's job has been running for a long time.
    (JobView(NOT_STARTED, WAITING, (ALIVE,), pod_since=NOW),
     "boot not finished", "terminate", ("a",)),
    # No other machine is needed, and this machine can't notice that it should end.
    (JobView(RECOVERING, dataclasses.replace(WAITING, stop="pion stop"), (ALIVE,)),
     "boot not finished", "cancel", ("a",)),
    (JobView(NOT_STARTED, dataclasses.replace(WAITING, finished=True), None),
     "boot not finished", "cancel", ()),
    (JobView(JOB, dataclasses.replace(SILENT, stop="pion stop"), (ALIVE,)),
     "silent", "cancel", ("a",)),
    # Waiting without a machine costs nothing.
    (JobView(RECOVERING, WAITING, ()), "no machine available", "note", ()),
    (JobView(JOB, HANGS, (ALIVE,)), "hang", "terminate", ("a",)),
    (JobView(JOB, HANGS, None), "hang", "relaunch", ()),
    (JobView(JOB, SILENT, (ALIVE,)), "silent", "terminate", ("a",)),
    # Three machines in a row in one place that lived less than 15 minutes.
    (JobView(RECOVERING, AT_WORK, (), attempts=in_a_row(A40, 900, 600, 300)),
     "bad place", "relaunch", ()),
    # Nothing recovers the run then, but while the run is at work, it needs no second machine.
    (JobView(CONTROLLER_LOST, AT_WORK, (ALIVE,)), "controller lost", "note", ()),
    (JobView(CONTROLLER_LOST, GONE_QUIET, (ALIVE,)), "controller lost", "note", ()),
    (JobView(CONTROLLER_LOST, SILENT, (ALIVE,)), "controller lost", "relaunch", ("a",)),
    (JobView(CONTROLLER_LOST, GONE_QUIET, ()), "controller lost", "relaunch", ()),
    (JobView(CONTROLLER_LOST, COMMITTED, (ALIVE,)), "controller lost", "note", ()),
    (JobView(CONTROLLER_LOST, STOPPED, ()), "controller lost", "note", ()),
    # Only we end the machine of a run that no longer needs it.
    (JobView(CONTROLLER_LOST, ENDED_BOOT, (ALIVE,)), "left behind", "terminate", ("a",)),
    (JobView(LEFT_BEHIND, ENDED_BOOT, (ALIVE,)), "left behind", "terminate", ("a",)),
    (JobView(CONTROLLER_LOST, BOOTING, ()), "controller lost", "relaunch", ()),
    # SkyPilot also gives this status to a cancelled or failed job that left its machine behind.
    (JobView(LEFT_BEHIND, GONE_QUIET, (ALIVE,)), "left behind", "terminate", ("a",)),
    (JobView(LEFT_BEHIND, GONE_QUIET, ()), "left behind", "note", ()),
    # If machines fail everywhere, the place is not to blame.
    (JobView(RECOVERING, run(claimed_at=None, last_sign=NOW - 9000), (), attempts=EVERYWHERE),
     "it never starts", "cancel", ()),
    # The machine that SkyPilot looks for is not needed.
    (JobView(RECOVERING, STOPPED, ()), "not needed", "cancel", ()),
    (JobView(job("STARTING"), DONE, ()), "not needed", "cancel", ()),
]  # fmt: skip


@pytest.mark.parametrize(("view", "what", "action", "pods"), WRONG)
def test_what_is_wrong_is_found_with_what_to_do(view, what, action, pods):
    (found,) = diagnose(view, NOW)
    assert (found.what, found.action, found.pods) == (what, action, pods)
    assert found.why


NEARLY_TOOK_OVER = job("RUNNING", recovered_at=NOW - BOOT_SECONDS - COMMIT_SILENCE_SECONDS + 1)

WELL = [
    JobView(JOB, AT_WORK, (ALIVE,)),
    JobView(JOB, AT_WORK, (), NOW - UNNOTICED_SECONDS + 1),  # SkyPilot needs a minute
    JobView(job("STARTING"), AT_WORK, (), NOW - LOST_BOOT_SECONDS + 1),
    JobView(job("STARTING", submitted_at=NOW - BOOT_SECONDS + 1), BOOTING, (ALIVE,)),
    JobView(JUST_RECOVERED, WAITING, (ALIVE,)),
    # The pod has just come, or just begun to run, after a long wait for a machine.
    JobView(RECOVERING, WAITING, (ALIVE,), pod_since=NOW - BOOT_SECONDS + 1),
    JobView(job("RUNNING", started_at=NOW - 30), BOOTING, None),
    # The machine must wait until the previous owner has been silent for long enough.
    JobView(NEARLY_TOOK_OVER, WAITING_LONG, (ALIVE,)),
    JobView(JOB, run(stalled_since=NOW - HANG_SECONDS + 1), (ALIVE,)),
    # While the run tries to reach its store, ending the machine would lose unsaved work.
    JobView(JOB, run(beat_at=NOW - 1800.0), (ALIVE,)),
    # Where only commits are a sign of life, silence means nothing.
    JobView(JOB, run(beat_at=None, heartbeats=False, last_sign=NOW - 3000), (ALIVE,)),
    # The run was asked to stop, or is done, so it will end by itself.
    JobView(RECOVERING, STOPPED, (EXITED,)),
    JobView(JOB, DONE, (EXITED,)),
    JobView(JOB, dataclasses.replace(HANGS, stop="pion stop"), (ALIVE,)),
    JobView(job("FAILED_CONTROLLER"), dataclasses.replace(SILENT, stop="pion stop"), ()),
    JobView(job("CANCELLING"), AT_WORK, (EXITED,)),
    JobView(job("FAILED"), AT_WORK, ()),
    # Two short lives, three short lives in two places, or one long life are no pattern.
    JobView(RECOVERING, AT_WORK, (), attempts=in_a_row(A40, 600, 300)),
    JobView(RECOVERING, AT_WORK, (), attempts=in_a_row(A40, 900, 600) + in_a_row(A4000, 300)),
    JobView(RECOVERING, AT_WORK, (), attempts=in_a_row(A40, 2000, 600, 300)),
    # The newest machine, the third or the fourth, is still at work.
    JobView(JOB, AT_WORK, (ALIVE,), attempts=in_a_row(A40, 900, 600, 300)),
    JobView(JOB, AT_WORK, (ALIVE,), attempts=in_a_row(A40, 1800, 1500, 1200, 900)),
]


@pytest.mark.parametrize("view", WELL)
def test_a_rental_is_left_alone_while_it_may_be_well(view):
    assert diagnose(view, NOW) == []


def test_a_run_that_should_end_says_why_no_other_machine_is_rented():
    stopped = dataclasses.replace(WAITING, stop="pion stop")
    (found,) = diagnose(JobView(job("RECOVERING"), stopped, (ALIVE,)), NOW)
    assert "asked to stop (pion stop), so Pion will not rent a new machine" in found.why
    assert found.avoid is None


def test_the_place_to_avoid_is_the_one_where_machines_die_young():
    attempts = in_a_row(A4000, 4000) + in_a_row(A40, 900, 600, 300)
    (found,) = diagnose(JobView(job("RECOVERING"), AT_WORK, (), attempts=attempts), NOW)
    assert found.avoid == A40
    assert "A40 spot on RunPod/CA" in found.why
    assert "5 min 00 s, 5 min 00 s, 5 min 00 s" in found.why
