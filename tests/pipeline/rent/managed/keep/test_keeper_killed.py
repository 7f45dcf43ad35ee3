"""A watcher that is killed at any of its calls leaves what the next one completes: each machine is
requested once, and nothing that is needed is cancelled."""

from dataclasses import dataclass

import pytest

from pipeline.state.notes.rental_note import read_rental_note, write_rental_note
from tests.support.fake_provider import Killed


def killed_everywhere(day, check):
    """Kill a watcher at each of its calls in turn; let another one look, and check what is left.
    Return how many were killed. The rental begins again each time."""
    sky, at, kills = day.sky, day.time.time, 0
    jobs, listed, note = list(sky.jobs), list(sky.listed or ()), read_rental_note(day.run)[0]
    for kill_at in range(1, 60):
        sky.jobs, sky.listed = list(jobs), list(listed)
        sky.orders, sky.calls = [], 0
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


@dataclass(frozen=True)
class Change:
    """What a watcher does in several calls.

    Attributes:
        before: the day until then. Job 7 is the launch, which waits for spot.
        requested: the markets that were asked in all.
        living: the jobs that live then.
        kills: at how many calls at least the watcher can be killed.
        keeps: whether no job may be cancelled.
        quick: whether it stands for the others, which are made of the same calls: it ends a machine
            and asks for another, asks for a second one, or leaves none in the end.
    """

    name: str
    before: str
    requested: tuple[str, ...]
    living: str
    kills: int
    keeps: bool = False
    quick: bool = False


NONE_STARTS = """
    0  job 7 PION_SPOT=0 status=RECOVERING
    0  machines-die on demand
    0  due RESERVE-100
"""
# The machine of the launch is up for so long that its boot does not end any more.
STUCK = "0 job 7 status=RUNNING submitted_at=now-BOOT-60 started_at=now-BOOT-60"
HOP_WAITS = """
    0    on-demand-owns
    150  job 9 PION_LAUNCH_ID=hop PION_BY_HOP=1 PION_SPOT=1 status=PENDING submitted_at=now
    150  due RESERVE-500
"""
HOP_ARRIVED = """
    0    on-demand-owns
    150  job 9 PION_LAUNCH_ID=hop PION_BY_HOP=1 PION_SPOT=1
    150  job 9 status=RUNNING recovered_at=now cloud=RunPod
    150  release
    150  claim host=hop launch_id=hop
    150  pods a:RUNNING:8 b:RUNNING:9
    150  due RESERVE+3000
"""
CHANGES = [
    Change("from waiting to on demand", "0 due RESERVE-100", ("on demand",), "8", 8, quick=True),
    Change(
        "from a slow spot machine to one on demand next to it",
        "0 spot-owns\n 120 due 1500",  # below `stay`
        ("on demand",), "7 8", 5, keeps=True, quick=True,
    ),
    Change(
        "a request for spot next to a machine on demand",
        "0 on-demand-owns\n 150 due RESERVE+3000", ("spot",), "8 9", 5, keeps=True,
    ),
    Change(
        "a standing request for spot that ends for lack of slack",
        "0 spot-stands\n 170 due RESERVE-500", (), "8", 3,
    ),
    Change("a restart with a deadline", "0 due RESERVE+3000\n" + STUCK, ("spot",), "8", 8),
    Change("giving up: nothing starts the run", NONE_STARTS, (), "", 4, quick=True),
    Change("a hop on its way", HOP_WAITS, (), "8 9", 2, keeps=True),
    Change("a hop that has arrived", HOP_ARRIVED, (), "9", 3),
    Change(
        "the end of a run while a request stands",
        "0 spot-stands\n 170 release sft evaluate\n 170 ends 8 SUCCEEDED", (), "", 3, quick=True,
    ),
]  # fmt: skip


def requested(day):
    """Return the markets that were asked."""
    return tuple(o.removeprefix("request ") for o in day.sky.orders if o.startswith("request"))


def is_cancelled(day):
    return any(order.startswith("cancel") for order in day.sky.orders)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, id=change.name, marks=() if change.quick else pytest.mark.soak)
        for change in CHANGES
    ],
)
def test_the_next_watcher_completes_what_a_killed_one_began(day, change):
    def check():
        assert requested(day) == change.requested
        day.lives(change.living)
        assert not (change.keeps and is_cancelled(day))
        if "SUCCEEDED" in change.before:
            day.note("none")

    day.play(change.before)
    assert killed_everywhere(day, check) >= change.kills


def test_a_restart_without_a_deadline_is_requested_at_most_once(day):
    """Only who has cancelled the job knows that it was to be restarted. For the next watcher, it is
    a job that was cancelled."""

    def at_most_one():
        if requested(day):
            assert requested(day) == ("spot",)
            day.lives("8")
        else:
            assert day.sky.orders == ["cancel 7"]
            day.says("stopped with status CANCELLED")
        day.said.clear()

    day.play(STUCK)
    assert killed_everywhere(day, at_most_one) >= 6
