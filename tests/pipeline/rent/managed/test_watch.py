"""`pion watch`: how it fixes what is wrong with a rental, and what it tells the user."""

import contextlib
import dataclasses
import sys

import httpx
import pytest
import yaml

from pipeline.cli import main
from pipeline.rent.managed.names import rental_name
from pipeline.rent.managed.request import rental_lock
from pipeline.rent.managed.watch import follow_or_leave, watch
from pipeline.state.claim import claim_run
from pipeline.web.address import Address
from tests.pipeline.rent.managed.days import days
from tests.support.fake_provider import JOB, FakeProvider
from tests.support.light_run import JOB as LIGHT
from tests.support.states import someone
from tests.support.waiting import PATIENCE_SECONDS

# In these days, JOB runs on pod `a` at first.
DAYS = """
a job that ends well is followed to its end
  0   claim
  10  beat stage=sft step=6 steps=10 loss=1.25 tokens_per_second=900.0
  20  release
  30  job 7 status=SUCCEEDED
  end → return 0
  end says managed job 7: RUNNING on RunPod CA, 1x[spot](A40:1, cpus=9, mem=50)
  end says on elsewhere owns the run (epoch 3)
  end says sft step 6/10, loss 1.2500, 900 tokens/s, saved: sft step 5
  end last managed job 7 is done

a run that was stopped after its controller was lost ends with 4 and without a machine
  0   claim
  0   beat stage=sft step=6
  0   job 7 status=FAILED_CONTROLLER
  20  stop
  20  release
  end → terminate a, return 4

a rental that ended without its machine saying so is over for other computers
  0   job 7 PION_LAUNCH_ID=first
  0   rented
  0   job 7 status=FAILED_NO_RESOURCE
  end → return 1
  end note none

a window that only shows a rental does not withdraw its note while another restarts the run
  0   onlooks
  0   job 7 PION_LAUNCH_ID=first
  0   rented
  0   job 7 status=CANCELLED
  end → return 1
  end note first

a window that only shows a rental says once what is wrong, and ends nothing
  0   onlooks
  0   pods x:EXITED
  30  job 7 status=SUCCEEDED
  end → return 0
  end once dead pod

a dead pod is terminated at the first look, one of another job is not, and the run remembers why
  0   claim
  0   pods x:EXITED other:EXITED:8
  10  → terminate x
  10  job 7 status=SUCCEEDED
  end → return 0
  end says dead pod: pod x is EXITED in RunPod's list while SkyPilot says RUNNING
  end wrote dead pod: terminated pod x
  end wrote

a job that SkyPilot does not list can not be judged
  0   provider jobs=[]
  0   look
  0   → fail
  0   says no longer lists managed job 7

one look returns 1 if anything is wrong, and fixes it
  0   look
  0   pods x:EXITED
  0   look
  0   → return 0, terminate x, return 1

the error of an attempt is said once its run is released
  0   claim
  0   event end code=1 message='it went wrong' stage=sft step=3
  0   release
  20  job 7 status=FAILED
  end → return 1
  end once it went wrong
  end says with exit code 1, in sft step 3: it went wrong

heartbeats without a step for a quarter of an hour are a hang
  0        claim
  0        beats stage=sft step=6
  HANG-10  →
  HANG+20  → terminate a
  HANG+20  job 7 status=SUCCEEDED
  end      → return 0
  end      says hang: the heartbeat continues, but there has been no step for 15 min

(slow) a run whose store was down may catch up before it counts as hanging
  0              claim
  0              beats stage=sft step=6
  100            beats
  2000           beats stage=sft step=6
  2000+HANG-60   job 7 status=SUCCEEDED
  end            → return 0

evaluation at the end, whose status names no step, is no hang
  0         claim
  0         beats stage=evaluate
  HANG+120  job 7 status=SUCCEEDED
  end       → return 0

a pod that is lost while it boots is not waited for forever
  0         asks
  70        pods
  LOST-10   →
  LOST+120  → cancel 7, submit 7
  LOST+120  job 8 status=SUCCEEDED
  end       → return 0

(slow) a pod that comes after a long wait gets the full time to boot
  0                  pods
  0                  asks
  BOOT+BOOT          pods late:CREATED
  BOOT+BOOT+BOOT-60  job 7 status=SUCCEEDED
  end                → return 0
  end                says no machine available

a pod that can not see the request to stop is ended with its job
  0        stop
  0        asks
  BOOT-10  →
  end      → terminate a, cancel 7, return 4
  end      says terminated pod a; cancelled managed job 7

a run that has hopped is not taken for one that was asked to stop
  0        claim launch_id=launch-old
  0        release
  0        hand-over first
  0        job 7 PION_LAUNCH_ID=first
  0        asks
  BOOT-10  →
  BOOT+10  → terminate a, cancel 7, submit 7 avoiding A40 spot on RunPod/CA
  BOOT+10  job 8 status=SUCCEEDED
  end      → return 0

a window that follows a run goes with it when it hops
  10  job 8
  20  ends 7 FAILED Job exited with exit code 4
  30  ends 8 SUCCEEDED
  end → return 0
  end last managed job 8 is done

a look that fails is reported once and repeated
  0   provider down=true
  30  provider down=false
  40  job 7 status=SUCCEEDED
  end → return 0
  end once something failed, and is tried again

a store that is down ends no watch
  0   store-down
  10  store-up
  20  job 7 status=SUCCEEDED
  end → return 0

a pod that costs more than planned is said once and left to itself
  0   job 7 PION_PRICES='{"A40":0.09}'
  20  job 7 status=SUCCEEDED
  end → return 0
  end once higher price
  end says pod a costs $0.36 per hour, 4.00 times the planned $0.09

a rental that ends after a stage is over then, and the next stage is said
  0   job 7 PION_LAUNCH_ID=l PION_UNTIL=sft
  0   claim launch_id=l
  0   beat stage=sft step=6
  10  release sft
  20  job 7 status=SUCCEEDED
  end → return 0
  end says managed job 7 is done
  end last next: evaluate. Rent a machine for it: pion launch JOB --on SKY

a controller that is lost after the last stage of a rental is not replaced, and its pod is ended
  0   job 7 PION_LAUNCH_ID=l PION_UNTIL=sft
  0   claim launch_id=l
  0   release sft
  0   job 7 status=FAILED_CONTROLLER
  end → terminate a, return 0
  end last next: evaluate

a machine that SkyPilot seeks after the last stage of a rental is not needed
  0   job 7 PION_LAUNCH_ID=l PION_UNTIL=sft
  0   claim launch_id=l
  0   release sft
  0   job 7 status=RECOVERING
  0   pods
  0   look
  0   → cancel 7, return 1
  0   says The run has done sft, so Pion will not rent a new machine

a stage that was done before, under other settings, is done again to its end
  0   claim
  0   release sft
  0   passes 60
  0   claim launch_id=l
  0   beat
  0   job 7 PION_LAUNCH_ID=l PION_UNTIL=sft
  0   job 7 status=RECOVERING
  0   pods
  0   look
  0   → return 0
"""


@pytest.mark.parametrize("lines", days(DAYS))
def test_a_rental_is_watched(rental, lines):
    rental.play(lines)


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ("Job exited with exit code 4 (user program failure).", 4, "stopped, with its state saved"),
        ("Job exited with exit code 2 (user program failure).", 2, "failed with exit code 2"),
        ("Task exited with exit codes [3] (…)", 3, "failed with exit code 3"),
        ("To see the details, run: …", 1, "stopped with status FAILED"),
    ],
)
def test_a_job_that_fails_gives_its_exit_code_and_where_its_output_is(rental, failure, code, words):
    rental.play(f"0 ends 7 FAILED {failure}\n end → return {code}\n end last {words}")
    rental.last("sky jobs logs 7")


def test_only_one_window_keeps_a_rental_going():
    with (
        rental_lock("pion-demo") as first,
        rental_lock("pion-demo") as second,
        rental_lock("pion-other") as other,
    ):
        assert (first(), second(), other()) == (True, False, True)
        assert (first(), second()) == (True, False)
    with rental_lock("pion-demo") as again:
        assert again()


def test_a_second_window_acts_once_the_first_has_gone(rental, capsys):
    rental.pods("x:EXITED")
    first = contextlib.ExitStack()
    assert first.enter_context(rental_lock(JOB.name))()

    def leave():
        assert rental.sky.orders == []
        first.close()
        rental.time.during_sleep = lambda: rental.job("7 status=SUCCEEDED")

    rental.time.during_sleep = leave
    assert follow_or_leave(rental.run, JOB.name, JOB.id, rental.sky) == 0
    assert rental.sky.orders == ["terminate x"]
    out = capsys.readouterr().out
    assert "another window restarts this run if it fails" in out
    assert "the other window has closed. From now on, this window restarts the run" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo", "has rented nothing for"),
        ("nothing", "no run 'nothing'"),
        ("/dev/null", "no run 'null' in the store file:///dev"),
    ],
)
def test_a_run_that_was_never_rented_is_refused_before_skypilot_is_loaded(
    run, monkeypatch, capsys, name, words
):
    claim_run(run, someone())
    monkeypatch.setitem(sys.modules, "pipeline.rent.managed.watch", None)  # an import fails
    where = name if name.startswith("/") else f"{run.store.url}/{name}"
    assert main(["watch", where]) == 2
    assert words in capsys.readouterr().err


def test_the_page_is_there_while_the_watch_acts(run, monkeypatch, capsys):
    claim_run(run, someone())
    name = rental_name(run.store.url, run.name)
    provider = FakeProvider(dataclasses.replace(JOB, name=name, status="SUCCEEDED"))
    shown = []

    def look_at_the_page():
        url = capsys.readouterr().out.partition("  the page of this run")[0]
        shown.append(httpx.get(f"{url}/data", timeout=PATIENCE_SECONDS).json()["runs"][0]["url"])
        return []

    monkeypatch.setattr(provider, "list_pods", look_at_the_page)
    assert watch(run.url, once=False, page=Address(port=0), provider=provider) == 0
    assert shown == [run.url]


def test_ctrl_c_names_the_job_that_continues(rental, capsys):
    def leave():
        raise KeyboardInterrupt

    rental.claim("")
    rental.job("7 status=FAILED_CONTROLLER")  # so the run is restarted
    rental.time.during_sleep = leave
    assert follow_or_leave(rental.run, JOB.name, JOB.id, rental.sky) == 0
    out = capsys.readouterr().out
    assert "managed job 8 continues" in out
    assert "sky jobs logs 8" in out
    assert f"pion stop {rental.run.store.url}/demo" in out


def test_a_finished_run_that_is_launched_again_is_not_over_for_the_new_job(run, rental):
    """The job may have more to do now. The store knows only once the new machine has claimed."""
    run.write_job("0123", yaml.safe_dump(LIGHT))
    claim = claim_run(run, someone(launch_id="before"))
    claim.set_job("0123")
    for stage in ("prepare", "pretrain", "sft", "evaluate", "publish"):
        claim.finish_stage(stage, "d", {})
    claim.release()
    rental.play("""
        0  job 7 PION_LAUNCH_ID=l status=STARTING
        0  pods
        0  look
        0  → return 1
    """)
