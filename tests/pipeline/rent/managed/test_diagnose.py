"""What is wrong with a rental, told from what SkyPilot, RunPod and the run's store say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.rent.managed.attempts import Attempt
from pipeline.rent.managed.diagnose import (
    BOOT_SECONDS,
    HANG_SECONDS,
    LOST_BOOT_SECONDS,
    SILENT_SECONDS,
    UNNOTICED_SECONDS,
    RunView,
    SkyView,
    diagnose,
)
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.place import Place
from pipeline.rent.managed.pods import Pod
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS
from tests.support.fake_provider import JOB, NOW

A40 = Place("RunPod", "CA", "A40", spot=True)
A4000 = Place("RunPod", "CA", "RTXA4000", spot=True)
ALIVE, EXITED = Pod("a", "", "RUNNING"), Pod("x", "", "EXITED")
AT_WORK = RunView(claimed_at=NOW - 7000, beat_at=NOW - 5, last_sign=NOW - 60)


def job(status: str, **changes: Any) -> ManagedJob:
    return dataclasses.replace(JOB, status=status, **changes)


def run(**changes: Any) -> RunView:
    return dataclasses.replace(AT_WORK, **changes)


def in_a_row(place: Place, *ages: float) -> tuple[Attempt, ...]:
    """Machines that were rented so many seconds ago."""
    return tuple(Attempt(place, NOW - age) for age in ages)


CONTROLLER_LOST = job("FAILED_CONTROLLER", failure="out of memory")
LEFT_BEHIND = job("FAILED_CONTROLLER", failure="Failed to clean up, resources may have leaked: …")
EVERYWHERE = tuple(
    Attempt(place, NOW - age)
    for place, age in zip([A40, A4000, A40, A4000, A40], [2000, 1600, 1200, 800, 400], strict=True)
)
GONE_QUIET = run(beat_at=NOW - 61)
# On a store where nothing but a commit is a sign of life.
COMMITTED = run(beat_at=None, heartbeats=False, last_sign=NOW - COMMIT_SILENCE_SECONDS + 1)
SILENT = run(beat_at=NOW - SILENT_SECONDS, last_sign=NOW - SILENT_SECONDS)
WAITING = run(beat_at=NOW - BOOT_SECONDS - 60, last_sign=NOW - BOOT_SECONDS - 60)
BOOTING = run(claimed_at=None, beat_at=None, last_sign=None)
JUST_RECOVERED = job("RUNNING", recovered_at=NOW - 30)
NOT_STARTED = job("RUNNING", recovered_at=NOW - BOOT_SECONDS)
# A store without heartbeats, where a silent owner is waited for before the run is taken over.
TAKING_OVER = job("RUNNING", recovered_at=NOW - BOOT_SECONDS - COMMIT_SILENCE_SECONDS)
WAITING_LONG = run(beat_at=None, last_sign=NOW - 9000, heartbeats=False)


@pytest.mark.parametrize(
    ("sky", "seen", "what", "action", "pods"),
    [
        # A stopped pod in the list keeps SkyPilot guessing for minutes: it is removed at once.
        (SkyView(JOB, (EXITED,)), AT_WORK, "dead pod", "terminate", ("x",)),
        (SkyView(job("RECOVERING"), (EXITED,)), AT_WORK, "dead pod", "terminate", ("x",)),
        # SkyPilot would go on calling it RUNNING, so the job itself is started anew.
        (SkyView(JOB, (), NOW - UNNOTICED_SECONDS), AT_WORK, "loss not noticed", "relaunch", ()),
        # Nor does it see that the pod it waits for will never come.
        (
            SkyView(job("RECOVERING"), (), NOW - LOST_BOOT_SECONDS),
            AT_WORK,
            "loss not noticed",
            "relaunch",
            (),
        ),
        # A boot that ends nowhere: SkyPilot waits for that very pod for ever.
        (
            SkyView(job("STARTING", submitted_at=NOW - BOOT_SECONDS), (ALIVE,)),
            BOOTING,
            "boot not finished",
            "relaunch",
            ("a",),
        ),
        (
            SkyView(job("RECOVERING"), (ALIVE,)),
            WAITING,
            "boot not finished",
            "relaunch",
            ("a",),
        ),
        # The job runs, but never comes to claim the run: without its pod SkyPilot recovers.
        (SkyView(NOT_STARTED, (ALIVE,)), WAITING, "boot not finished", "terminate", ("a",)),
        (SkyView(NOT_STARTED, None), WAITING, "boot not finished", "relaunch", ()),
        (SkyView(TAKING_OVER, (ALIVE,)), WAITING_LONG, "boot not finished", "terminate", ("a",)),
        # A pod that was long waited for has its own time to boot, and no more.
        (
            SkyView(job("RECOVERING"), (ALIVE,), pod_since=NOW - BOOT_SECONDS),
            WAITING,
            "boot not finished",
            "relaunch",
            ("a",),
        ),
        # The watcher came late to see a pod whose job has been running for long.
        (
            SkyView(NOT_STARTED, (ALIVE,), pod_since=NOW),
            WAITING,
            "boot not finished",
            "terminate",
            ("a",),
        ),
        # Nobody wants another machine, and this one can't see that it is to end.
        (
            SkyView(job("RECOVERING"), (ALIVE,)),
            dataclasses.replace(WAITING, stop="pion stop"),
            "boot not finished",
            "cancel",
            ("a",),
        ),
        (
            SkyView(NOT_STARTED, None),
            dataclasses.replace(WAITING, finished=True),
            "boot not finished",
            "cancel",
            (),
        ),
        (
            SkyView(JOB, (ALIVE,)),
            dataclasses.replace(SILENT, stop="pion stop"),
            "silent",
            "cancel",
            ("a",),
        ),
        # No machine costs nothing.
        (SkyView(job("RECOVERING"), ()), WAITING, "no machine available", "note", ()),
        (
            SkyView(JOB, (ALIVE,)),
            run(stalled_since=NOW - HANG_SECONDS),
            "hang",
            "terminate",
            ("a",),
        ),
        (SkyView(JOB, None), run(stalled_since=NOW - HANG_SECONDS), "hang", "relaunch", ()),
        (SkyView(JOB, (ALIVE,)), SILENT, "silent", "terminate", ("a",)),
        # Three machines in a row that did not live a quarter of an hour in one place.
        (
            SkyView(job("RECOVERING"), (), attempts=in_a_row(A40, 900, 600, 300)),
            AT_WORK,
            "bad place",
            "relaunch",
            (),
        ),
        # Nobody recovers the run then, but while it is at work it needs no second machine.
        (SkyView(CONTROLLER_LOST, (ALIVE,)), AT_WORK, "controller lost", "note", ()),
        (SkyView(CONTROLLER_LOST, (ALIVE,)), GONE_QUIET, "controller lost", "note", ()),
        (SkyView(CONTROLLER_LOST, (ALIVE,)), SILENT, "controller lost", "relaunch", ("a",)),
        (SkyView(CONTROLLER_LOST, ()), GONE_QUIET, "controller lost", "relaunch", ()),
        (SkyView(CONTROLLER_LOST, (ALIVE,)), COMMITTED, "controller lost", "note", ()),
        (SkyView(CONTROLLER_LOST, ()), run(stop="pion stop"), "controller lost", "note", ()),
        # Nobody but us ends the machine of a run that needs it no more.
        (
            SkyView(CONTROLLER_LOST, (ALIVE,)),
            dataclasses.replace(BOOTING, finished=True),
            "left behind",
            "terminate",
            ("a",),
        ),
        (
            SkyView(LEFT_BEHIND, (ALIVE,)),
            dataclasses.replace(BOOTING, finished=True),
            "left behind",
            "terminate",
            ("a",),
        ),
        (SkyView(CONTROLLER_LOST, ()), BOOTING, "controller lost", "relaunch", ()),
        # So it calls a job that was cancelled, or failed for good, but left its machine behind.
        (SkyView(LEFT_BEHIND, (ALIVE,)), GONE_QUIET, "left behind", "terminate", ("a",)),
        (SkyView(LEFT_BEHIND, ()), GONE_QUIET, "left behind", "note", ()),
        # It is not the place if they come to nothing everywhere.
        (
            SkyView(job("RECOVERING"), (), attempts=EVERYWHERE),
            run(claimed_at=None, last_sign=NOW - 9000),
            "it never starts",
            "cancel",
            (),
        ),
        # Nobody wants the machine that SkyPilot looks for.
        (
            SkyView(job("RECOVERING"), ()),
            dataclasses.replace(AT_WORK, stop="pion stop"),
            "not needed",
            "cancel",
            (),
        ),
        (
            SkyView(job("STARTING"), ()),
            dataclasses.replace(AT_WORK, finished=True),
            "not needed",
            "cancel",
            (),
        ),
    ],
)
def test_what_is_wrong_is_found_with_what_to_do(
    sky: SkyView, seen: RunView, what: str, action: str, pods: tuple[str, ...]
) -> None:
    (found,) = diagnose(sky, seen, NOW)
    assert (found.what, found.action, found.pods) == (what, action, pods)
    assert found.why


@pytest.mark.parametrize(
    ("sky", "seen"),
    [
        (SkyView(JOB, (ALIVE,)), AT_WORK),
        (SkyView(JOB, (), NOW - UNNOTICED_SECONDS + 1), AT_WORK),  # SkyPilot needs a minute
        (SkyView(job("STARTING"), (), NOW - LOST_BOOT_SECONDS + 1), AT_WORK),
        (SkyView(job("STARTING", submitted_at=NOW - BOOT_SECONDS + 1), (ALIVE,)), BOOTING),
        (SkyView(JUST_RECOVERED, (ALIVE,)), WAITING),
        # It has just come, or just begun to run, after a long wait for any machine to be had.
        (SkyView(job("RECOVERING"), (ALIVE,), pod_since=NOW - BOOT_SECONDS + 1), WAITING),
        (SkyView(job("RUNNING", started_at=NOW - 30), None), BOOTING),
        # It waits for the owner before it to show no sign of life, as it must.
        (
            SkyView(
                job("RUNNING", recovered_at=NOW - BOOT_SECONDS - COMMIT_SILENCE_SECONDS + 1),
                (ALIVE,),
            ),
            WAITING_LONG,
        ),
        (SkyView(JOB, (ALIVE,)), run(stalled_since=NOW - HANG_SECONDS + 1)),
        # As long as it tries to reach its store, what it has not stored would be lost with it.
        (SkyView(JOB, (ALIVE,)), run(beat_at=NOW - 1800.0)),
        # Where only commits are a sign of life, silence means nothing.
        (SkyView(JOB, (ALIVE,)), run(beat_at=None, heartbeats=False, last_sign=NOW - 3000)),
        # Somebody wants it to stop, or it is done: it is left to end.
        (SkyView(job("RECOVERING"), (EXITED,)), run(stop="pion stop")),
        (SkyView(JOB, (EXITED,)), run(finished=True)),
        (SkyView(JOB, (ALIVE,)), run(stop="pion stop", stalled_since=NOW - HANG_SECONDS)),
        (SkyView(job("FAILED_CONTROLLER"), ()), dataclasses.replace(SILENT, stop="pion stop")),
        (SkyView(job("CANCELLING"), (EXITED,)), AT_WORK),
        (SkyView(job("FAILED"), ()), AT_WORK),
        (SkyView(None, None), AT_WORK),
        # Two short lives, or three in two places, or one of them long, are no pattern.
        (SkyView(job("RECOVERING"), (), attempts=in_a_row(A40, 600, 300)), AT_WORK),
        (
            SkyView(job("RECOVERING"), (), attempts=in_a_row(A40, 900, 600) + in_a_row(A4000, 300)),
            AT_WORK,
        ),
        (SkyView(job("RECOVERING"), (), attempts=in_a_row(A40, 2000, 600, 300)), AT_WORK),
        # The newest is still at work, be it the third or the fourth.
        (SkyView(JOB, (ALIVE,), attempts=in_a_row(A40, 900, 600, 300)), AT_WORK),
        (SkyView(JOB, (ALIVE,), attempts=in_a_row(A40, 1800, 1500, 1200, 900)), AT_WORK),
    ],
)
def test_a_rental_is_left_alone_while_it_may_be_well(sky: SkyView, seen: RunView) -> None:
    assert diagnose(sky, seen, NOW) == []


def test_whoever_is_to_end_is_told_why_no_other_machine_is_rented() -> None:
    stopped = dataclasses.replace(WAITING, stop="pion stop")
    (found,) = diagnose(SkyView(job("RECOVERING"), (ALIVE,)), stopped, NOW)
    assert "asked to stop (pion stop), so no other machine is needed" in found.why
    assert found.avoid is None


def test_the_place_to_avoid_is_the_one_where_machines_die_young() -> None:
    attempts = in_a_row(A4000, 4000) + in_a_row(A40, 900, 600, 300)
    (found,) = diagnose(SkyView(job("RECOVERING"), (), attempts=attempts), AT_WORK, NOW)
    assert found.avoid == A40
    assert "A40 spot on RunPod/CA" in found.why
    assert "5 min 00 s, 5 min 00 s, 5 min 00 s" in found.why
