"""What an owner's heartbeat reports and detects."""

from pion.errors import Fenced
from pipeline.state.claim import claim_again, claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError
from tests.support.hooked_store import Hooked
from tests.support.states import someone
from tests.support.waiting import wait_until


def test_the_heartbeat_tells_who_is_at_which_step(run):
    claim = claim_run(run, someone(host="gpu-1"))
    assert run.heartbeat(1) is None
    claim.heartbeat.report(stage="pretrain", step=30, steps=480, loss=4.5)
    claim.heartbeat.start(seconds=0.01)
    wait_until(lambda: (run.heartbeat(1) or {}).get("beat", 0) >= 3, "three beats")
    claim.release()
    beat = run.heartbeat(1)
    assert beat["owner"]["host"] == "gpu-1"
    assert beat["status"] == {
        "stage": "pretrain",
        "step": 30,
        "steps": 480,
        "loss": 4.5,
        "at": 1_000_000.0,
    }


def test_the_heartbeat_finds_out_that_somebody_took_over(run):
    claim = claim_run(run, someone())
    claim.heartbeat.start(seconds=0.01)
    claim.check()
    claim_run(run, someone(host="gpu-2"), take_over=True)

    def fenced():
        try:
            claim.check()
        except Fenced as error:
            return "gpu-2" in str(error)
        return False

    wait_until(fenced, "gpu-2 took over")
    claim.heartbeat.stop()


def test_the_heartbeat_finds_out_that_a_worker_of_ours_owns_the_run(run):
    me = someone()
    claim = claim_run(run, me)
    claim.heartbeat.start(seconds=0.01)
    wait_until(lambda: run.heartbeat(1) is not None, "a beat")
    assert claim.heartbeat.running
    assert not claim.heartbeat.lent
    claim_again(run, me)
    wait_until(lambda: claim.heartbeat.lent, "lent")
    claim.check()
    claim.heartbeat.stop()
    assert not claim.heartbeat.running


def test_a_heartbeat_that_cannot_be_written_does_not_disturb_the_run(tmp_path):
    store, tried = Hooked(tmp_path), []
    claim = claim_run(RunState(store, "demo"), someone())

    def fail(operation):
        if operation.startswith("write"):
            tried.append(operation)
            raise StoreError("write", operation, "the disk is full")

    store.before = fail
    claim.heartbeat.start(seconds=0.01)
    wait_until(lambda: len(tried) >= 3, "three tries")
    claim.check()
    claim.release()
