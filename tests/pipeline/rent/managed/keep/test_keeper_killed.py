"""A watcher that is killed at any of its calls leaves what the next one completes: each machine is
requested once, and nothing that is needed is cancelled."""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pipeline.rent.managed.provider.jobs import BOOT_SECONDS
from pipeline.rent.managed.provider.recorded_task import BY_HOP
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import read_rental_note, write_rental_note
from tests.pipeline.rent.managed.keep.day import RESERVE, Day
from tests.support.fake_provider import JOB
from tests.support.states import someone
from tests.support.two_markets import ON_DEMAND, SPOT, Killed, Market

# The launch waits for spot. The job after it is on demand, and the one after that on spot.
LAUNCH, SECOND, THIRD = JOB.id, JOB.id + 1, JOB.id + 2


def killed_everywhere(day, check):
    """Kill a watcher at each of its calls in turn; let another one look, and check what is left.
    Return how many were killed. The rental begins again each time."""
    sky, at, kills = day.sky, day.time.time, 0
    jobs, listed, note = list(sky.jobs), list(sky.listed or ()), read_rental_note(day.run)[0]
    for kill_at in range(1, 60):
        sky.jobs, sky.listed = list(jobs), list(listed)
        sky.submitted_to, sky.cancelled, sky.calls = [], [], 0
        write_rental_note(day.run, note, read_rental_note(day.run)[1])
        for sky.kill_at in (kill_at, 0):
            watcher = day.watcher()
            try:
                watcher.look_once()
                watcher.look_once()
            except Killed:
                kills += 1
            day.time.time += 61
        day.time.time = at
        killed = kills == kill_at
        try:
            check()
        except AssertionError as error:
            raise AssertionError(f"killed at call {kill_at}: {sky.jobs}") from error
        if not killed:
            break
    return kills


def waiting(day):
    day.due_in(RESERVE - 100)


def slow_spot(day):
    day.spot_owns(120)
    day.due_in(1500.0)  # below `stay`


def on_demand_with_slack(day):
    day.on_demand_owns()
    day.due_in(RESERVE + 3000)


def standing_request_without_slack(day):
    day.on_demand_owns()
    day.spot_is_asked_for()
    day.due_in(RESERVE - 500)


def stuck(day):
    """Let the launch's machine be up for so long that its boot does not end any more."""
    since = day.time.time - BOOT_SECONDS - 60
    day.sky.change(LAUNCH, status="RUNNING", submitted_at=since, started_at=since)


def stuck_with_a_deadline(day):
    day.due_in(RESERVE + 3000)
    stuck(day)


def no_machine_on_demand_starts_the_run(day):
    day.due_in(RESERVE - 100)
    job = day.with_variables(day.sky.jobs[0], PION_SPOT="0")
    day.sky.jobs = [dataclasses.replace(job, id=LAUNCH, status="RECOVERING")]
    day.machines_die(spot=False)


def hop_of(day):
    envs = {"PION_LAUNCH_ID": "hop", "PION_SPOT": "1", BY_HOP: "1"}
    return day.with_variables(day.sky.jobs[0], **envs)


def hop_on_its_way(day):
    day.on_demand_owns()
    hop = dataclasses.replace(hop_of(day), status="PENDING", submitted_at=day.time.time)
    day.sky.jobs.append(hop)
    day.due_in(RESERVE - 500)


def hop_that_has_arrived(day):
    on_demand, sky = day.on_demand_owns(), day.sky
    running = {"status": "RUNNING", "recovered_at": day.time.time, "cloud": "RunPod"}
    hop = dataclasses.replace(hop_of(day), **running)
    sky.jobs.append(hop)
    sky.claim.release()
    sky.claim = claim_run(day.run, someone(host="hop", launch_id="hop"), take_over=True)
    sky.listed = [sky.pod("a", "RUNNING", on_demand.id), sky.pod("b", "RUNNING", hop.id)]
    day.due_in(RESERVE + 3000)


def end_of_the_run(day):
    on_demand = day.on_demand_owns()
    day.spot_is_asked_for()
    for stage in ("sft", "evaluate", "publish"):
        with contextlib.suppress(KeyError):
            day.sky.claim.finish_stage(stage, "d", {})
    day.sky.claim.release()
    day.sky.end(on_demand.id, "SUCCEEDED")


@dataclass(frozen=True)
class Change:
    """What a watcher does in several calls: what happened before, which markets were asked in all,
    which jobs live then, and at how many calls at least it can be killed. `keeps`: no job is
    cancelled."""

    name: str
    before: Callable[[Day], object]
    requested: list[Market]
    living: list[int]
    kills: int
    keeps: bool = False


CHANGES = [
    Change("from waiting to on demand", waiting, [ON_DEMAND], [SECOND], 8),
    Change(
        "from a slow spot machine to one on demand next to it",
        slow_spot, [ON_DEMAND], [LAUNCH, SECOND], 5, keeps=True,
    ),
    Change(
        "a request for spot next to a machine on demand",
        on_demand_with_slack, [SPOT], [SECOND, THIRD], 5, keeps=True,
    ),
    Change(
        "a standing request for spot that ends for lack of slack",
        standing_request_without_slack, [], [SECOND], 3,
    ),
    Change("a restart with a deadline", stuck_with_a_deadline, [SPOT], [SECOND], 8),
    Change("giving up: nothing starts the run", no_machine_on_demand_starts_the_run, [], [], 4),
    Change("a hop on its way", hop_on_its_way, [], [SECOND, THIRD], 2, keeps=True),
    Change("a hop that has arrived", hop_that_has_arrived, [], [THIRD], 3),
    Change("the end of a run while a request stands", end_of_the_run, [], [], 3),
]  # fmt: skip


# One that ends a machine and asks for another, one that asks for a second machine, and two at
# whose end no machine may be left. The others are made of the same calls.
QUICK = (waiting, slow_spot, no_machine_on_demand_starts_the_run, end_of_the_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            change, id=change.name, marks=() if change.before in QUICK else pytest.mark.soak
        )
        for change in CHANGES
    ],
)
def test_the_next_watcher_completes_what_a_killed_one_began(day, change):
    def check():
        assert day.sky.submitted_to == change.requested
        assert day.living == change.living
        assert not (change.keeps and day.sky.cancelled)
        if change.before is end_of_the_run:
            assert read_rental_note(day.run)[0] is None

    change.before(day)
    assert killed_everywhere(day, check) >= change.kills


def test_a_restart_without_a_deadline_is_requested_at_most_once(day):
    """Only who has cancelled the job knows that it was to be restarted. For the next watcher, it is
    a job that was cancelled."""

    def at_most_one():
        if day.sky.submitted_to:
            assert day.sky.submitted_to == [SPOT]
            assert day.living == [SECOND]
        else:
            assert day.sky.cancelled == [LAUNCH]
            assert day.lines("stopped with status CANCELLED")
        day.said.clear()

    stuck(day)
    assert killed_everywhere(day, at_most_one) >= 6
