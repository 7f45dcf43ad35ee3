"""The events of a run keep the cost of pods that end before they own the run."""

import pytest

from pipeline.cost.costs import costs_of
from pipeline.rent.managed.look.between_looks import claimed_machines, each_once
from pipeline.rent.managed.look.diagnose import Attempt
from pipeline.state.claim import claim_run
from pipeline.state.head import Head
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.rent.managed.day import Rental
from tests.pipeline.rent.managed.days import days
from tests.pipeline.rent.managed.look.test_diagnose import A40, A4000
from tests.support.states import someone

# In these days, JOB runs on pod `a` at first. `lost a 0-10` is what the run keeps of a pod that was
# lost: when it was first and last seen.
DAYS = """
the shown cost includes a machine that never owned the run
  0   claim
  0   beat stage=sft step=6
  0   pods a:RUNNING:7:now-3600
  10  job 7 status=FAILED
  end → return 1
  end says sft step 6, saved: sft step 5 ($0.36 so far)
  end last stopped with status FAILED ($0.36 so far)

pods that have ended cost nothing more although they are still listed
  0   pods a x
  10  pods a:EXITED x:TERMINATED
  20  → terminate a, terminate x
  30  job 7 status=SUCCEEDED
  end → return 0
  end lost a 0-0 x 0-0

the pod of a job that has ended is kept too, because this is the last look
  0   job 7 status=FAILED_SETUP
  0   look
  0   → return 1
  0   lost a 0-0

a pod that owned the run speaks for itself
  10  claim host=a
  10  machine a rented_at=now
  20  job 7 status=RECOVERING
  20  pods
  30  job 7 status=SUCCEEDED
  end → return 0
  end lost

every lost pod is kept, and those of other runs are not
  0   pods a x:RUNNING:other
  10  pods b
  20  job 7 status=RECOVERING
  20  pods
  30  job 7 status=SUCCEEDED
  end → return 0
  end lost a 0-0 b 10-10

a lost pod is recorded later if the store is down
  10  job 7 status=RECOVERING
  10  pods
  10  store-down
  30  store-up
  50  job 7 status=SUCCEEDED
  end → return 0
  end lost a 0-0

a machine that claims the run before SkyPilot says that it runs counts once
  0   job 7 status=STARTING
  10  claim host=one
  10  machine one rented_at=now
  20  job 7 status=RUNNING recoveries=0 recovered_at=now
  30  job 7 status=RECOVERING
  40  claim host=two
  40  machine two rented_at=now
  50  job 7 status=RUNNING recoveries=1 recovered_at=now
  60  job 7 status=RECOVERING
  70  job 7 status=SUCCEEDED
  end → return 0
  end never bad place
"""


@pytest.mark.parametrize("lines", days(DAYS))
def test_what_machines_cost_is_kept_though_they_never_own_the_run(rental, lines):
    rental.play(lines)


def test_two_windows_keep_a_lost_pod_once(rental):
    windows = [rental.watcher(acting=acting) for acting in (True, False)]
    for window in windows:
        window.lookout.look()
        rental.passes("5")
    rental.pods("")
    rental.job("7 status=RECOVERING")
    for window in windows:
        window.lookout.look()
    rental.lost("a 0-0")


def test_a_pod_lost_before_any_machine_owned_the_run_is_kept_too(rental, tmp_path, time, said):
    new = RunState(FileStore(tmp_path / "new"), "demo", time.clock())
    day = Rental(rental.sky, new, time, said)
    day.play("""
        0   asks
        20  job 7 status=RECOVERING
        20  pods
        30  job 7 status=SUCCEEDED
        end → return 0
        end lost a 0-10
    """)
    assert new.read() is None
    assert costs_of(new, Head(), time.time).dollars == pytest.approx(0.001)  # 10 s at $0.36
    claim_run(new, someone()).release()
    assert costs_of(new, new.read(), time.time).dollars == pytest.approx(0.001)


# ---------------------------------------------------------------- the machines of a managed job


def test_the_machines_of_a_run_come_from_its_store_each_once(run):
    events = EventLog(run.store, run.name, 9, now=lambda: 50.0)
    about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True}
    events.append("machine", id="one", rented_at=10.0, managed_job="7", **about)
    events.append("machine", id="one", rented_at=10.0, managed_job="7", **about)  # a second claim
    events.append("machine", id="two", managed_job="7", **about)
    events.append("machine", id="three", managed_job="8", **about)
    events.append("machine", id="four", **about)  # rented without pion launch
    events.flush()
    assert claimed_machines(run, 7) == [Attempt(A40, 10.0), Attempt(A40, 50.0)]


def test_a_machine_that_the_store_and_skypilot_know_is_one():
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
