"""`pion watch` ends a job that makes no progress and submits it again, elsewhere if needed."""

import contextlib

import pytest

from pipeline.rent.managed.keep.replace_rental import Renter
from pipeline.rent.managed.request import submitting_alone
from pipeline.rent.managed.watch import follow_or_leave
from tests.pipeline.rent.managed.days import days
from tests.support.fake_provider import JOB

# In these days, JOB runs on pod `a` at first. A job that replaces it runs on pod `b`.
DAYS = """
a place where machines die young is avoided from then on
  10  job 7 status=RECOVERING
  20  job 7 status=RUNNING recoveries=1 recovered_at=now
  30  job 7 status=RECOVERING
  40  job 7 status=RUNNING recoveries=2 recovered_at=now
  50  →
  50  job 7 status=RECOVERING
  60  → cancel 7, submit 7 avoiding A40 spot on RunPod/CA
  60  job 8 status=SUCCEEDED
  end → return 0
  end says restarted the run as managed job 8 and excluded A40 spot on RunPod/CA

a job that may go nowhere else is left as it is
  0   provider only='A40 spot on RunPod/CA'
  0   claim
  0   machine pod900 rented_at=now-900
  0   machine pod600 rented_at=now-600
  0   machine pod300 rented_at=now-300
  0   job 7 status=RECOVERING
  20  job 7 status=SUCCEEDED
  end → return 0
  end once the YAML allows nothing but that

a job that may go nowhere else, where no machine starts the run, is ended
  0   provider only='A40 spot on RunPod/CA'
  10  job 7 status=RECOVERING
  20  job 7 status=RUNNING recoveries=1 recovered_at=now
  30  job 7 status=RECOVERING
  40  job 7 status=RUNNING recoveries=2 recovered_at=now
  50  job 7 status=RECOVERING
  60  job 7 status=RUNNING recoveries=3 recovered_at=now
  70  job 7 status=RECOVERING
  80  job 7 status=RUNNING recoveries=4 recovered_at=now
  90  job 7 status=RECOVERING
  100 job 7 status=RUNNING recoveries=5 recovered_at=now
  110 →
  110 job 7 status=RECOVERING
  end → cancel 7, return 1
  end says it never starts: the last 5 machines (A40 spot on RunPod/CA)

two reasons to restart make one restart
  0              pods
  0              passes 3600
  0              job 7 started_at=now-BOOT+UNNOTICED
  3600           →
  3600+UNNOTICED+10  → cancel 7, submit 7
  3600+UNNOTICED+10  job 8 status=SUCCEEDED
  end            → return 0
  end            never boot not finished

a job that can not be submitted again keeps its pod
  0        refused task HF_TOKEN must be set in the environment
  0        asks
  BOOT+60  job 7 status=SUCCEEDED
  end      → return 0
  end      once HF_TOKEN must be set

a pod that nobody would end is replaced in the same place if there is no other
  0        provider only='A40 spot on RunPod/CA'
  0        asks
  BOOT     →
  BOOT+10  → terminate a, cancel 7, submit 7
  BOOT+10  job 8 status=SUCCEEDED
  end      → return 0

(slow) a run that no machine ever owns is given up in the end
  0                  asks
  BOOT+10            → terminate a, cancel 7, submit 7 avoiding A40 spot on RunPod/CA
  BOOT+10            asks
  BOOT+BOOT+20       → terminate b, cancel 8, submit 8 avoiding A40 spot on RunPod/CA
  BOOT+BOOT+20       asks
  BOOT+BOOT+BOOT+30  → terminate b, cancel 9, submit 9 avoiding A40 spot on RunPod/CA
  BOOT+BOOT+BOOT+30  asks
  end                → terminate b, cancel 10, return 1
  end                says no machine has owned the run after 3 restarts

a run at work is watched without its controller, and restarted when it ends
  0    claim
  0    beat stage=sft step=6
  0    beats stage=sft step=7
  0    job 7 status=FAILED_CONTROLLER failure='the machine of the controller was restarted'
  600  beats
  600  pods
  650  →
  680  → submit 7
  680  job 8 status=SUCCEEDED
  end  → return 0
  end  says the machine of the controller was restarted

a job cancelled for a restart is submitted however often that fails
  0   fails submit 3
  0        asks
  BOOT+10  → terminate a, cancel 7
  BOOT+40  → submit 7 avoiding A40 spot on RunPod/CA
  BOOT+40  job 8 status=SUCCEEDED
  end      → return 0

a submission that only seemed to fail is not repeated
  0   fails submitted 1
  0        asks
  BOOT+40  → terminate a, cancel 7, submit 7 avoiding A40 spot on RunPod/CA
  BOOT+40  job 8 status=SUCCEEDED
  end      → return 0

a job that is cancelled is submitted again though SkyPilot says three times that it can not cancel
  0   fails cancelled 3
  0        asks
  BOOT+40  → terminate a, cancel 7, submit 7 avoiding A40 spot on RunPod/CA
  BOOT+40  job 8 status=SUCCEEDED
  end      → return 0

one look submits what it has ended though that fails at first
  0   fails submit 3
  0   job 7 status=FAILED_CONTROLLER
  0   look
  30  → terminate a, submit 7, return 1

one look that can not submit what it has ended says so within minutes
  0    fails submit 1000
  0    job 7 status=FAILED_CONTROLLER
  0    look
  0    → terminate a, fail
  0    says timed out Pion was cancelling managed job 7 to restart the run
  0    says /demo`. If a newer job is listed

one look says which pod still costs
  0   unended a
  0   pods a:EXITED b:EXITED c:EXITED
  0   look
  0   → terminate b, terminate c, fail
  0   says could not terminate pod a

a lost controller without the secrets for a restart ends the watch
  0   refused task HF_TOKEN must be set in the environment
  0   claim
  0   job 7 status=FAILED_CONTROLLER
  end → return 1
  end says HF_TOKEN must be set

a restart that is impossible is reported once
  0             refused task HF_TOKEN must be set in the environment
  0             claim
  0             pods
  UNNOTICED+60  job 7 status=SUCCEEDED
  end           → return 0
  end           once HF_TOKEN must be set
  end           wrote loss not noticed: left the job alone, because it can't be submitted again
  end           wrote

dead pods are ended whatever happens to one of them
  0   pods a:EXITED b:EXITED c:EXITED
  0   unended a
  20  unended
  20  → terminate b, terminate c
  40  job 7 status=SUCCEEDED
  end → terminate a, return 0

a boot that never ends costs only the pod that can not be ended, and no second machine before that
  0          pods a b c
  0          unended a
  0          asks
  BOOT       →
  BOOT+1500  → terminate b, terminate c, cancel 7
  BOOT+1500  unended
  BOOT+1510  → terminate a, submit 7 avoiding A40 spot on RunPod/CA
  BOOT+1510  job 8 status=SUCCEEDED
  end        → return 0
  end        says terminated pod a
  end        times 3 pod a: timed out
  end        times 2 pods that cost $0.36 per hour: a.

a boot of a run that was stopped costs only the pod that can not be ended
  0          stop
  0          pods a b c
  0          unended a
  0          asks
  BOOT       →
  BOOT+1500  → terminate b, terminate c, cancel 7
  BOOT+1500  unended
  end        → terminate a, return 4
  end        says terminated pod a

a job that was relieved is no reason not to replace the one that relieved it
  0          job 7 PION_LAUNCH_ID=old
  0          claim launch_id=old
  0          job 8 PION_LAUNCH_ID=new status=STARTING submitted_at=now
  0          claim launch_id=new
  0          job 8 status=RUNNING
  0          pods
  0          look
  0          → return 0
  0          passes UNNOTICED
  UNNOTICED  look
  UNNOTICED  → cancel 8, submit 8, return 1

(slow) a hop whose machine never boots ends, and the owner works on
  0         job 7 PION_LAUNCH_ID=old
  0         claim launch_id=old
  0         beats stage=sft step=6
  0         job 8 PION_LAUNCH_ID=new status=STARTING submitted_at=now
  0         pods a b:RUNNING:8
  600       beats stage=sft step=7
  BOOT      →
  BOOT+20   → terminate b, cancel 8
  BOOT+50   ends 7 SUCCEEDED
  end       → return 0
  end       says cancelled managed job 8
  end       last managed job 7 is done

(slow) a hop whose machine never boots ends, though its job can not be cancelled at once
  0         job 7 PION_LAUNCH_ID=old
  0         claim launch_id=old
  0         fails cancel 1
  0         beats stage=sft step=6
  0         job 8 PION_LAUNCH_ID=new status=STARTING submitted_at=now
  0         pods a b:RUNNING:8
  600       beats stage=sft step=7
  BOOT      →
  BOOT+10   → terminate b
  BOOT+40   → cancel 8
  BOOT+50   ends 7 SUCCEEDED
  end       → return 0
  end       last managed job 7 is done
"""


@pytest.mark.parametrize("lines", days(DAYS))
def test_a_job_that_makes_no_progress_is_replaced(rental, lines):
    rental.play(lines)


@pytest.mark.slow
def test_a_job_that_is_cancelled_is_submitted_again_even_if_its_end_can_not_be_seen(rental):
    cancel = rental.sky.cancel

    def cancel_unseen(job_ids):
        cancel(job_ids)
        rental.sky.fail("list", times=3)

    rental.sky.cancel = cancel_unseen
    rental.play("""
        0        asks
        BOOT+40  → terminate a, cancel 7, submit 7 avoiding A40 spot on RunPod/CA
        BOOT+40  job 8 status=SUCCEEDED
        end      → return 0
    """)


def test_a_job_that_ends_well_before_it_could_be_cancelled_is_not_submitted_again(rental):
    rental.sky.cancel = lambda job_ids: rental.job("7 status=SUCCEEDED")
    rental.play("""
        0   asks
        end → terminate a, return 0
        end says managed job 7 was already over (SUCCEEDED), so it was not restarted
    """)


def test_a_job_that_another_process_submits_meanwhile_is_followed_and_not_submitted_again(
    rental, monkeypatch
):
    announce = Renter.announce

    def submitted_elsewhere(renter, *announced):
        announce(renter, *announced)
        rental.job("8 status=RUNNING")

    monkeypatch.setattr(Renter, "announce", submitted_elsewhere)
    rental.play("""
        0        asks
        BOOT+10  → terminate a, cancel 7
        BOOT+10  job 8 status=SUCCEEDED
        end      → return 0
    """)


def test_while_a_person_submits_the_run_it_is_not_submitted_again(rental):
    with contextlib.ExitStack() as person:
        person.enter_context(submitting_alone(JOB.name))
        rental.leave = lambda _: person.close()
        rental.play("""
            0   job 7 status=FAILED_CONTROLLER
            10  → terminate a
            10  leave
            20  → submit 7
            20  job 8 status=SUCCEEDED
            end → return 0
            end says another process on this machine is submitting
        """)


def test_ctrl_c_while_the_run_is_restarted_does_not_say_that_it_continues(rental, capsys):
    rental.sky.fail("submit", error=KeyboardInterrupt())
    rental.job("7 status=FAILED_CONTROLLER")
    rental.claim("")
    assert follow_or_leave(rental.run, JOB.name, JOB.id, rental.sky) == 130
    out = capsys.readouterr().out
    assert "continues\n" not in out
    assert "Pion was cancelling managed job 7 to restart the run" in out
    assert f"pion rentals {rental.run.store.url}/demo" in out
