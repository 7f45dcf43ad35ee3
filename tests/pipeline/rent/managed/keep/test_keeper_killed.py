"""A watcher that is killed at any of its calls leaves what the next one completes: each machine is
requested once, and nothing that is needed is cancelled."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import yaml

from pipeline.rent.managed.look.diagnose import FUTILE_LIVES
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS, ManagedJob
from pipeline.rent.managed.provider.recorded_task import BY_HOP
from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import read_rental_note, write_rental_note
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from tests.pipeline.rent.managed.keep.test_keeper_deadline import RESERVE, due_in, sky, watch
from tests.support.clock import FakeClock
from tests.support.fake_provider import JOB
from tests.support.states import read, someone
from tests.support.two_markets import ON_DEMAND, SPOT, Killed, TwoMarkets

__all__ = ["sky", "watch"]

Watch = Callable[[float], None]


@dataclass
class Killing:
    """Kills watchers of one rental, which begins again each time."""

    sky: TwoMarkets
    run: RunState
    time: FakeClock
    said: list[str]

    def everywhere(self, check: Callable[[], None], *, looks: int = 2) -> int:
        """Kill a watcher at each of its calls in turn; let another one look, and check what is
        left. Return how many were killed."""
        sky, at, kills = self.sky, self.time.time, 0
        jobs, listed, note = list(sky.jobs), list(sky.listed or ()), read_rental_note(self.run)[0]
        assert note is not None
        for kill_at in range(1, 60):
            sky.jobs, sky.listed = list(jobs), list(listed)
            sky.submitted_to, sky.cancelled, sky.calls = [], [], 0
            write_rental_note(self.run, note, read_rental_note(self.run)[1])
            for sky.kill_at in (kill_at, 0):
                try:
                    self.look(looks)
                except Killed:
                    kills += 1
                self.time.time += 61
            self.time.time = at
            killed = kills == kill_at
            try:
                check()
            except AssertionError as error:
                raise AssertionError(f"killed at call {kill_at}: {sky.jobs}") from error
            if not killed:
                break
        return kills

    def look(self, looks: int) -> None:
        """Let a new watcher look so often, or until the rental is over."""
        self.time.during_sleep = lambda: None
        watcher = Watcher(self.run, JOB.name, JOB.id, self.said.append, self.sky)
        for _ in range(looks):
            watcher.look_once()


@pytest.fixture
def killing(sky: TwoMarkets, run: RunState, time: FakeClock, said: list[str]) -> Killing:
    return Killing(sky, run, time, said)


@pytest.fixture
def on_demand(sky: TwoMarkets, run: RunState, watch: Watch) -> ManagedJob:
    """The job of a machine on demand that owns the run."""
    due_in(run, RESERVE - 100)
    watch(150)
    job = sky.job_on(ON_DEMAND)
    assert job is not None
    return job


def stuck(sky: TwoMarkets, time: FakeClock) -> None:
    """Let the launch's machine be up for so long that its boot does not end any more."""
    since = time.time - BOOT_SECONDS - 60
    sky.change(JOB.id, status="RUNNING", submitted_at=since, started_at=since)


def of_launch(sky: TwoMarkets, launch: str, **envs: str) -> ManagedJob:
    """Return a job like that of the launch, with other variables."""
    config = yaml.safe_load(sky.jobs[0].task or "")
    config["envs"] = {**config["envs"], "PION_LAUNCH_ID": launch, **envs}
    new = max(job.id for job in sky.jobs) + 1
    return dataclasses.replace(sky.jobs[0], id=new, task=yaml.safe_dump(config))


def test_from_waiting_for_spot_to_a_machine_on_demand(
    killing: Killing, sky: TwoMarkets, run: RunState
) -> None:
    def one_on_demand() -> None:
        assert sky.submitted_to == [ON_DEMAND]
        assert [job.live for job in sky.jobs] == [False, True]

    due_in(run, RESERVE - 100)
    assert killing.everywhere(one_on_demand) >= 8


def test_from_a_spot_machine_that_is_too_slow_to_one_on_demand_next_to_it(
    killing: Killing, sky: TwoMarkets, run: RunState, watch: Watch
) -> None:
    def both() -> None:
        assert sky.submitted_to == [ON_DEMAND]
        assert sky.cancelled == []
        assert len(sky.living) == 2

    sky.offered[SPOT] = True
    due_in(run, RESERVE + 3000)
    watch(120)
    assert sky.claim is not None
    due_in(run, 1500.0)  # below `stay`
    assert killing.everywhere(both) >= 5


def test_a_request_for_spot_that_is_to_stand_next_to_a_machine_on_demand(
    killing: Killing, sky: TwoMarkets, run: RunState, on_demand: ManagedJob
) -> None:
    def both() -> None:
        assert sky.submitted_to == [SPOT]
        assert sky.cancelled == []
        assert len(sky.living) == 2

    due_in(run, RESERVE + 3000)
    assert killing.everywhere(both) >= 5


def test_a_standing_request_for_spot_that_is_cancelled_for_lack_of_slack(
    killing: Killing, sky: TwoMarkets, run: RunState, on_demand: ManagedJob, watch: Watch
) -> None:
    def only_on_demand() -> None:
        assert sky.submitted_to == []
        assert sky.living == [on_demand]

    due_in(run, RESERVE + 3000)
    watch(20)
    assert sky.job_on(SPOT) is not None
    due_in(run, RESERVE - 500)
    assert killing.everywhere(only_on_demand) >= 3


def test_a_restart_with_a_deadline(
    killing: Killing, sky: TwoMarkets, run: RunState, time: FakeClock
) -> None:
    def one_on_spot() -> None:
        assert sky.submitted_to == [SPOT]
        assert [job.live for job in sky.jobs] == [False, True]

    due_in(run, RESERVE + 3000)
    stuck(sky, time)
    assert killing.everywhere(one_on_spot) >= 8


def test_a_restart_without_a_deadline(
    killing: Killing, sky: TwoMarkets, run: RunState, time: FakeClock, said: list[str]
) -> None:
    """Only who has cancelled the job knows that it was to be restarted. For the next watcher, it is
    a job that was cancelled."""

    def at_most_one() -> None:
        if sky.submitted_to:
            assert sky.submitted_to == [SPOT]
            assert [job.live for job in sky.jobs] == [False, True]
        else:
            assert sky.cancelled == [JOB.id]
            assert any("stopped with status CANCELLED" in line for line in said)
        said.clear()

    stuck(sky, time)
    assert killing.everywhere(at_most_one) >= 6


def test_a_rental_that_is_given_up_because_no_machine_on_demand_starts_the_run(
    killing: Killing, sky: TwoMarkets, run: RunState, time: FakeClock, said: list[str]
) -> None:
    def nothing_left() -> None:
        assert sky.submitted_to == []
        assert sky.living == []

    due_in(run, RESERVE - 100)
    job = of_launch(sky, "first", PION_SPOT="0")
    sky.jobs = [dataclasses.replace(job, id=JOB.id, status="RECOVERING")]
    events = EventLog(run.store, run.name, read(run).epoch)
    for n in range(FUTILE_LIVES):
        about = {"cloud": "RunPod", "region": f"R{n}", "gpu": "A40", "managed_job": str(JOB.id)}
        events.append("machine", id=f"pod{n}", rented_at=time.time - 100 + n, spot=False, **about)
    events.flush()
    assert killing.everywhere(nothing_left) >= 4


def test_a_hop_while_it_is_on_its_way(
    killing: Killing, sky: TwoMarkets, run: RunState, on_demand: ManagedJob
) -> None:
    def both() -> None:
        assert (sky.submitted_to, sky.cancelled) == ([], [])
        assert len(sky.living) == 2

    hop = of_launch(sky, "hop", PION_SPOT="1", **{BY_HOP: "1"})
    sky.jobs.append(dataclasses.replace(hop, status="PENDING", submitted_at=sky.time.time))
    due_in(run, RESERVE - 500)
    assert killing.everywhere(both) >= 2


def test_a_hop_that_has_arrived_while_the_old_machine_still_stands(
    killing: Killing, sky: TwoMarkets, run: RunState, on_demand: ManagedJob, time: FakeClock
) -> None:
    hop = of_launch(sky, "hop", PION_SPOT="1", **{BY_HOP: "1"})
    running = {"status": "RUNNING", "recovered_at": time.time, "cloud": "RunPod"}
    sky.jobs.append(dataclasses.replace(hop, **running))
    assert sky.claim is not None
    sky.claim.release()
    sky.claim = claim_run(run, someone(host="hop", launch_id="hop"), take_over=True)
    sky.listed = [sky.pod("a", "RUNNING", on_demand.id), sky.pod("b", "RUNNING", hop.id)]
    due_in(run, RESERVE + 3000)

    def only_the_new_one() -> None:
        assert sky.submitted_to == []
        assert [job.id for job in sky.living] == [hop.id]

    assert killing.everywhere(only_the_new_one) >= 3


def test_the_end_of_a_run_while_a_request_for_spot_stands(
    killing: Killing, sky: TwoMarkets, run: RunState, on_demand: ManagedJob, watch: Watch
) -> None:
    due_in(run, RESERVE + 3000)
    watch(20)
    assert sky.job_on(SPOT) is not None
    assert sky.claim is not None
    for stage in ("sft", "evaluate", "publish"):
        with contextlib.suppress(KeyError):
            sky.claim.finish_stage(stage, "d", {})
    sky.claim.release()
    sky.end(on_demand.id, "SUCCEEDED")

    def nothing_left() -> None:
        assert sky.submitted_to == []
        assert sky.living == []
        assert read_rental_note(run)[0] is None

    assert killing.everywhere(nothing_left) >= 3
