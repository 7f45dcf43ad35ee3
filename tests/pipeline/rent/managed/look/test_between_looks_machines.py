"""The machines of a managed job, of which the store and SkyPilot each know some."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.rent.managed.look.between_looks import claimed_machines, each_once
from pipeline.rent.managed.look.diagnose import Attempt
from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import claim_run
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from tests.pipeline.rent.managed.look.test_diagnose import A40, A4000
from tests.support.clock import FakeClock
from tests.support.fake_provider import FakeProvider, during, succeed
from tests.support.states import someone


def test_the_machines_of_a_run_come_from_its_store_each_once(run: RunState) -> None:
    events = EventLog(run.store, run.name, 9, now=lambda: 50.0)
    about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True}
    events.append("machine", id="one", rented_at=10.0, managed_job="7", **about)
    events.append("machine", id="one", rented_at=10.0, managed_job="7", **about)  # a second claim
    events.append("machine", id="two", managed_job="7", **about)
    events.append("machine", id="three", managed_job="8", **about)
    events.append("machine", id="four", **about)  # rented without pion launch
    events.flush()
    assert claimed_machines(run, 7) == [Attempt(A40, 10.0), Attempt(A40, 50.0)]


def test_a_machine_that_the_store_and_skypilot_know_is_one() -> None:
    claimed = [Attempt(A40, 100.0), Attempt(A4000, 500.0)]
    assert each_once(claimed, [Attempt(A40, 160.0), Attempt(A4000, 570.0)]) == claimed
    assert each_once(claimed, []) == claimed  # nobody watched
    futile = Attempt(A40, 300.0)  # it ran, but never claimed the run
    assert each_once(claimed, [Attempt(A40, 160.0), futile, Attempt(A4000, 570.0)]) == [
        claimed[0],
        futile,
        claimed[1],
    ]
    assert each_once([], [futile]) == [futile]


def test_a_machine_that_claims_the_run_before_skypilot_says_that_it_runs_counts_once(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, said: list[str]
) -> None:
    def claims() -> None:
        events = EventLog(run.store, run.name, claim_run(run, someone(), take_over=True).epoch)
        about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True, "managed_job": "7"}
        events.append("machine", id=f"pod{time.time}", rented_at=time.time, **about)
        events.flush()

    def runs(recoveries: int) -> Callable[[], None]:
        return lambda: provider.now("RUNNING", recoveries=recoveries, recovered_at=time.time)

    def recovers() -> None:
        provider.now("RECOVERING")

    provider.now("STARTING")
    during(time, claims, runs(0), recovers, claims, runs(1), recovers, succeed(provider))
    assert watcher.follow() == 0
    assert "bad place" not in "\n".join(said)  # two machines
