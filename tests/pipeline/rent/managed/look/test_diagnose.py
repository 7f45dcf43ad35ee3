"""What is wrong with a rental, from what SkyPilot, RunPod and the run's store say."""

import dataclasses

import pytest

from pipeline.rent.managed.look.diagnose import (
    HANG_SECONDS,
    LOST_BOOT_SECONDS,
    SILENT_SECONDS,
    UNNOTICED_SECONDS,
    Attempt,
    RunView,
    SkyView,
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
    (SkyView(JOB, (EXITED,)), AT_WORK, "dead pod", "terminate", ("x",)),
    (SkyView(RECOVERING, (EXITED,)), AT_WORK, "dead pod", "terminate", ("x",)),
    # SkyPilot would continue to call the job RUNNING, so the job is restarted.
    (SkyView(JOB, (), NOW - UNNOTICED_SECONDS), AT_WORK, "loss not noticed", "relaunch", ()),
    # SkyPilot does not notice either that the pod it waits for will never come.
    (SkyView(RECOVERING, (), NOW - LOST_BOOT_SECONDS), AT_WORK, "loss not noticed", "relaunch", ()),
    # A boot that never ends: SkyPilot would wait for this pod forever.
    (SkyView(job("STARTING", submitted_at=NOW - BOOT_SECONDS), (ALIVE,)), BOOTING,
     "boot not finished", "relaunch", ("a",)),
    (SkyView(RECOVERING, (ALIVE,)), WAITING, "boot not finished", "relaunch", ("a",)),
    # The job runs, but never claims the run. Once its pod is gone, SkyPilot recovers it.
    (SkyView(NOT_STARTED, (ALIVE,)), WAITING, "boot not finished", "terminate", ("a",)),
    (SkyView(NOT_STARTED, None), WAITING, "boot not finished", "relaunch", ()),
    (SkyView(TAKING_OVER, (ALIVE,)), WAITING_LONG, "boot not finished", "terminate", ("a",)),
    # After a long wait for a pod, the pod still gets BOOT_SECONDS, but no more.
    (SkyView(RECOVERING, (ALIVE,), pod_since=NOW - BOOT_SECONDS), WAITING,
     "boot not finished", "relaunch", ("a",)),
    # The watcher has just started, and the pod's job has been running for a long time.
    (SkyView(NOT_STARTED, (ALIVE,), pod_since=NOW), WAITING,
     "boot not finished", "terminate", ("a",)),
    # No other machine is needed, and this machine can't notice that it should end.
    (SkyView(RECOVERING, (ALIVE,)), dataclasses.replace(WAITING, stop="pion stop"),
     "boot not finished", "cancel", ("a",)),
    (SkyView(NOT_STARTED, None), dataclasses.replace(WAITING, finished=True),
     "boot not finished", "cancel", ()),
    (SkyView(JOB, (ALIVE,)), dataclasses.replace(SILENT, stop="pion stop"),
     "silent", "cancel", ("a",)),
    # Waiting without a machine costs nothing.
    (SkyView(RECOVERING, ()), WAITING, "no machine available", "note", ()),
    (SkyView(JOB, (ALIVE,)), HANGS, "hang", "terminate", ("a",)),
    (SkyView(JOB, None), HANGS, "hang", "relaunch", ()),
    (SkyView(JOB, (ALIVE,)), SILENT, "silent", "terminate", ("a",)),
    # Three machines in a row in one place that lived less than 15 minutes.
    (SkyView(RECOVERING, (), attempts=in_a_row(A40, 900, 600, 300)), AT_WORK,
     "bad place", "relaunch", ()),
    # Nothing recovers the run then, but while the run is at work, it needs no second machine.
    (SkyView(CONTROLLER_LOST, (ALIVE,)), AT_WORK, "controller lost", "note", ()),
    (SkyView(CONTROLLER_LOST, (ALIVE,)), GONE_QUIET, "controller lost", "note", ()),
    (SkyView(CONTROLLER_LOST, (ALIVE,)), SILENT, "controller lost", "relaunch", ("a",)),
    (SkyView(CONTROLLER_LOST, ()), GONE_QUIET, "controller lost", "relaunch", ()),
    (SkyView(CONTROLLER_LOST, (ALIVE,)), COMMITTED, "controller lost", "note", ()),
    (SkyView(CONTROLLER_LOST, ()), STOPPED, "controller lost", "note", ()),
    # Only we end the machine of a run that no longer needs it.
    (SkyView(CONTROLLER_LOST, (ALIVE,)), ENDED_BOOT, "left behind", "terminate", ("a",)),
    (SkyView(LEFT_BEHIND, (ALIVE,)), ENDED_BOOT, "left behind", "terminate", ("a",)),
    (SkyView(CONTROLLER_LOST, ()), BOOTING, "controller lost", "relaunch", ()),
    # SkyPilot also gives this status to a cancelled or failed job that left its machine behind.
    (SkyView(LEFT_BEHIND, (ALIVE,)), GONE_QUIET, "left behind", "terminate", ("a",)),
    (SkyView(LEFT_BEHIND, ()), GONE_QUIET, "left behind", "note", ()),
    # If machines fail everywhere, the place is not to blame.
    (SkyView(RECOVERING, (), attempts=EVERYWHERE), run(claimed_at=None, last_sign=NOW - 9000),
     "it never starts", "cancel", ()),
    # No window was open while machines ended.
    (SkyView(job("RECOVERING", recoveries=4), (), place=A40), run(claimed_at=None, last_sign=None),
     "it never starts", "cancel", ()),
    # The machine that SkyPilot looks for is not needed.
    (SkyView(RECOVERING, ()), STOPPED, "not needed", "cancel", ()),
    (SkyView(job("STARTING"), ()), DONE, "not needed", "cancel", ()),
    # Nor is one that SkyPilot will look for, or has found for a run that was done by then.
    (SkyView(JOB, ()), DONE, "not needed", "cancel", ()),
    (SkyView(RECOVERING, (ALIVE,)), DONE, "not needed", "cancel", ("a",)),
    (SkyView(RECOVERING), DONE, "not needed", "cancel", ()),
]  # fmt: skip


@pytest.mark.parametrize(("sky", "seen", "what", "action", "pods"), WRONG)
def test_what_is_wrong_is_found_with_what_to_do(sky, seen, what, action, pods):
    (found,) = diagnose(sky, seen, NOW)
    assert (found.what, found.action, found.pods) == (what, action, pods)
    assert found.why


NEARLY_TOOK_OVER = job("RUNNING", recovered_at=NOW - BOOT_SECONDS - COMMIT_SILENCE_SECONDS + 1)

WELL = [
    (SkyView(JOB, (ALIVE,)), AT_WORK),
    (SkyView(JOB, (), NOW - UNNOTICED_SECONDS + 1), AT_WORK),  # SkyPilot needs a minute
    (SkyView(job("STARTING"), (), NOW - LOST_BOOT_SECONDS + 1), AT_WORK),
    (SkyView(job("STARTING", submitted_at=NOW - BOOT_SECONDS + 1), (ALIVE,)), BOOTING),
    (SkyView(JUST_RECOVERED, (ALIVE,)), WAITING),
    # The pod has just come, or just begun to run, after a long wait for a machine.
    (SkyView(RECOVERING, (ALIVE,), pod_since=NOW - BOOT_SECONDS + 1), WAITING),
    (SkyView(job("RUNNING", started_at=NOW - 30), None), BOOTING),
    # The machine must wait until the previous owner has been silent for long enough.
    (SkyView(NEARLY_TOOK_OVER, (ALIVE,)), WAITING_LONG),
    (SkyView(JOB, (ALIVE,)), run(stalled_since=NOW - HANG_SECONDS + 1)),
    # While the run tries to reach its store, ending the machine would lose unsaved work.
    (SkyView(JOB, (ALIVE,)), run(beat_at=NOW - 1800.0)),
    # Where only commits are a sign of life, silence means nothing.
    (SkyView(JOB, (ALIVE,)), run(beat_at=None, heartbeats=False, last_sign=NOW - 3000)),
    # The run was asked to stop, or is done, so it will end by itself.
    (SkyView(RECOVERING, (EXITED,)), STOPPED),
    (SkyView(RECOVERING, (ALIVE,)), STOPPED),
    (SkyView(JOB), DONE),
    (SkyView(JOB, ()), STOPPED),  # it may still save
    (SkyView(JOB, (EXITED,)), DONE),
    (SkyView(JOB, (ALIVE,)), dataclasses.replace(HANGS, stop="pion stop")),
    (SkyView(job("FAILED_CONTROLLER"), ()), dataclasses.replace(SILENT, stop="pion stop")),
    (SkyView(job("CANCELLING"), (EXITED,)), AT_WORK),
    (SkyView(job("FAILED"), ()), AT_WORK),
    # Two short lives, three short lives in two places, or one long life are no pattern.
    (SkyView(RECOVERING, (), attempts=in_a_row(A40, 600, 300)), AT_WORK),
    (SkyView(RECOVERING, (), attempts=in_a_row(A40, 900, 600) + in_a_row(A4000, 300)), AT_WORK),
    (SkyView(RECOVERING, (), attempts=in_a_row(A40, 2000, 600, 300)), AT_WORK),
    # The newest machine, the third or the fourth, is still at work.
    (SkyView(JOB, (ALIVE,), attempts=in_a_row(A40, 900, 600, 300)), AT_WORK),
    (SkyView(JOB, (ALIVE,), attempts=in_a_row(A40, 1800, 1500, 1200, 900)), AT_WORK),
]


@pytest.mark.parametrize(("sky", "seen"), WELL)
def test_a_rental_is_left_alone_while_it_may_be_well(sky, seen):
    assert diagnose(sky, seen, NOW) == []


def test_a_run_that_should_end_says_why_no_other_machine_is_rented():
    stopped = dataclasses.replace(WAITING, stop="pion stop")
    (found,) = diagnose(SkyView(job("RECOVERING"), (ALIVE,)), stopped, NOW)
    assert "asked to stop (pion stop), so Pion will not rent a new machine" in found.why
    assert found.avoid is None


def test_the_place_to_avoid_is_the_one_where_machines_die_young():
    attempts = in_a_row(A4000, 4000) + in_a_row(A40, 900, 600, 300)
    (found,) = diagnose(SkyView(job("RECOVERING"), (), attempts=attempts), AT_WORK, NOW)
    assert found.avoid == A40
    assert "A40 spot on RunPod/CA" in found.why
    assert "5 min 00 s, 5 min 00 s, 5 min 00 s" in found.why
