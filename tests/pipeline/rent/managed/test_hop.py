"""`pion hop`: rent, wait until the new machine has taken over the run, then end the old machine."""

import dataclasses

import pytest
import yaml

from pion.errors import BadInput, PionError
from pipeline.cli import main
from pipeline.job.file import job_text
from pipeline.rent.managed import hop as hopping
from pipeline.rent.managed.hop import Move, hop, others_left
from pipeline.rent.managed.names import cluster_name, rental_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.pods import Pod
from pipeline.run.handover import FROM_EPOCH, relieves
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import ask_stop, pending_stop
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import EventLog
from pipeline.state.status.recorded_job import find_job_file
from tests.pipeline.rent.conftest import YAML
from tests.support.fake_provider import ANOTHER, ME, FakeProvider
from tests.support.light_run import JOB
from tests.support.states import NEW, OLD
from tests.support.states import read as head_of

# ---------------------------------------------------------------- the job


@pytest.fixture
def project(tmp_path, run, monkeypatch):
    """A checkout with the job file that the run's store records."""
    folder = tmp_path / "project"
    (folder / "jobs").mkdir(parents=True)
    (folder / ".venv").mkdir()
    job = JOB | {"name": "demo", "store": str(tmp_path / "runs")}
    for path in ("jobs/demo.yaml", ".venv/demo.yaml"):
        (folder / path).write_text(yaml.safe_dump(job))
    (folder / "jobs" / "other.yaml").write_text("name: other\n")
    monkeypatch.chdir(folder)
    record(run, job_text(folder / "jobs" / "demo.yaml"))
    return folder


def record(run, text):
    digest = f"{abs(hash(text)):x}"
    run.write_job(digest, text)
    claim = claim_run(run, Owner.me())
    claim.set_job(digest)
    claim.release()


def test_the_job_is_found_again_by_what_the_store_says_of_it(run, project):
    assert find_job_file(run, head_of(run)) == ("jobs/demo.yaml", [])


def test_the_overrides_of_the_launch_are_found_again(run, project):
    overrides = ["pretrain.lr=1e-3", "publish=null"]
    record(run, job_text(project / "jobs" / "demo.yaml", overrides))
    assert find_job_file(run, head_of(run)) == ("jobs/demo.yaml", overrides)


def test_a_job_that_was_changed_since_must_be_named(run, project):
    (project / "jobs" / "demo.yaml").write_text("name: demo\n")
    with pytest.raises(
        BadInput, match=r"has changed, or it is in a different folder.*--job FILE.*Nothing was"
    ):
        find_job_file(run, head_of(run))


# ---------------------------------------------------------------- the command


class Sky(FakeProvider):
    """SkyPilot as `hop` sees it: the old job, and the new one. RunPod has no key here."""

    def __init__(self, run, home, time):
        self.run, self.name = run, rental_name(run.store.url, run.name)
        self.home, self.time = home, time
        super().__init__(ManagedJob(1, self.name, "RUNNING", cloud="RunPod", region="CA"))
        self.listed = None
        self.launch_id = ""
        self.old = claim_run(run, OLD)

    def hop(self, *overrides, text=YAML):
        hop("demo", on=str(self.home.yaml(text=text)), overrides=overrides)

    def leave_during_the_hop(self):
        """Hop, and press Ctrl-C while the new machine boots."""
        self.time.during_sleep = interrupt
        self.hop()

    def relieve(self):
        """Let the new machine take over once it is requested."""
        if head_of(self.run).owner == OLD and self.launch_id:
            self.takes_over()

    def rent(self, job_id, task, name):
        self.launch_id = task.envs["PION_LAUNCH_ID"]
        self.from_epoch = task.envs.get(FROM_EPOCH)
        return ManagedJob(job_id, name, "STARTING")

    def takes_over(self):
        """Let the new machine claim the run that the old machine has released."""
        if self.old._fenced is None:
            self.old.release()
        return claim_run(self.run, dataclasses.replace(NEW, launch_id=self.launch_id))


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture
def sky(run, project, sky_home, monkeypatch, time):
    """Managed job 1 works on the run, and every check before renting passes."""
    fake = Sky(run, sky_home, time)
    monkeypatch.setattr(hopping, "Provider", lambda: fake)
    monkeypatch.setattr(hopping, "require_checks", lambda order, **more: None)
    monkeypatch.setattr(hopping, "read_run", lambda text: (run, head_of(run)))
    return fake


def test_a_hop_waits_for_the_new_owner_then_for_the_old_rental_and_shows_the_receipt(sky, capsys):
    def live():
        if head_of(sky.run).owner == OLD and sky.launch_id:
            claim = sky.takes_over()
            events = EventLog(sky.run.store, sky.run.name, claim.epoch)
            events.append("hop", receipt=["hop: A40 → A4000", "first row 36 = last + 1"])
            events.flush()
            sky.change(1, status="FAILED", failure="Job exited with exit code 4")

    sky.time.during_sleep = live
    sky.hop("hardware.micro_batch=2")
    out = capsys.readouterr().out
    assert "managed job 2 is submitted; managed job 1 continues until the new machine is up" in out
    assert "on pod-new has taken over the run (epoch 5)" in out
    assert "managed job 1 has stopped" in out
    assert "first row 36 = last + 1" in out
    assert sky.from_epoch == "4"
    assert sky.orders == []


def test_an_old_pod_that_can_not_be_ended_costs_no_other_and_is_named(sky):
    def live():
        sky.relieve()
        sky.change(1, status="FAILED", failure="Job exited with exit code 4")

    sky.refuses, sky.time.during_sleep = {"a"}, live
    cluster = cluster_name(sky.name, 1)
    sky.listed = [Pod(name, f"{cluster}-{ME}-head", "RUNNING") for name in "ab"]
    with pytest.raises(PionError, match=r"has moved to managed job 2, but .* pod a: timed out"):
        sky.hop()
    assert sky.orders == ["terminate b"]


def test_an_old_rental_that_does_not_end_by_itself_is_cancelled(sky, capsys):
    sky.time.during_sleep = sky.relieve
    sky.hop()
    assert sky.orders == ["cancel 1"]
    assert "cancelled managed job 1" in capsys.readouterr().out


def test_a_launch_that_fails_leaves_the_old_one_running_and_its_note_as_it_was(sky):
    old = RentalNote(0.0, "desk", "1a2b3c4d", "launch-old", 1)
    write_rental_note(sky.run, old, None)
    sky.time.during_sleep = lambda: sky.change(
        2, status="FAILED_NO_RESOURCE", failure="no RTX A4000 anywhere"
    )
    with pytest.raises(PionError) as failed:
        sky.hop()
    message = str(failed.value)
    assert "managed job 2 stopped before it took over the run" in message
    assert "no RTX A4000 anywhere" in message
    assert f"{OLD.describe()} still owns demo, and continues" in message
    assert sky.orders == []
    assert pending_stop(sky.run) is None
    assert read_rental_note(sky.run)[0] == old


def test_the_request_to_hand_over_is_withdrawn_if_the_new_machine_does_not_take_over(sky):
    def ask_and_die():
        ask_stop(sky.run, "pion hop to pod-new", except_launch=sky.launch_id)
        sky.change(2, status="FAILED", failure="out of memory")

    sky.time.during_sleep = ask_and_die
    with pytest.raises(PionError) as failed:
        sky.hop()
    assert f"{OLD.describe()} had been asked to hand over demo" in str(failed.value)
    assert "still owns" not in str(failed.value)
    assert pending_stop(sky.run) is None


def test_a_machine_that_another_computer_has_rented_is_named(sky):
    theirs = Pod("theirs", f"{cluster_name(sky.name, 1)}-{ANOTHER}-head", "RUNNING")
    ours = Pod("ours", f"{cluster_name(sky.name, 1)}-{ME}-head", "RUNNING")
    strangers = Pod("strangers", f"pion-other-01234567-1-{ANOTHER}-head", "RUNNING")
    sky.listed = [theirs, ours, strangers]
    (line,) = others_left(Move(sky.run, sky.name, "launch-new", 2, sky.jobs, None, sky))
    assert "pod theirs was rented from another computer" in line


def test_a_machine_that_never_comes_is_given_up_and_the_old_one_continues(sky):
    with pytest.raises(
        PionError, match=r"did not take over the run within 30 min 00 s.*still owns"
    ):
        sky.hop()
    assert sky.orders == ["cancel 2"]
    assert head_of(sky.run).owner == OLD


def test_on_a_store_without_heartbeats_the_new_machine_may_wait_for_a_silent_owner(
    sky, monkeypatch
):
    monkeypatch.setattr(type(sky.run.store), "commits", True)
    with pytest.raises(PionError, match=r"did not take over the run within 1 h 00 min"):
        sky.hop()


@pytest.mark.parametrize("status", ["RECOVERING", "CANCELLED"])
def test_an_old_owner_that_may_come_back_will_be_asked_for_the_run(sky, status):
    """SkyPilot recovers its job after a preemption, or another computer has rented it."""
    sky.old.release()
    sky.change(1, status=status)

    sky.leave_during_the_hop()
    assert sky.from_epoch == "4"
    claim_run(sky.run, OLD)  # the new machine is up only after the old job is back
    assert relieves(head_of(sky.run), 4, NEW)


def test_a_hop_may_be_forced(sky, monkeypatch):
    forced = []

    monkeypatch.setattr(hopping, "require_checks", lambda order, force: forced.append(force))
    sky.time.during_sleep = interrupt
    on = str(sky.home.yaml())
    assert main(["hop", "demo", "--on", on, "--force"]) == 0
    sky.jobs = sky.jobs[:1]
    assert main(["hop", "demo", "--on", on]) == 0
    assert forced == [True, False]


def test_a_run_that_is_finished_before_the_new_machine_is_up_needs_it_no_more(sky, capsys):
    def finish():
        if sky.launch_id and sky.old._fenced is None:
            for stage in ("sft", "evaluate"):
                sky.old.finish_stage(stage, "digest", {})
            sky.old.release()

    sky.time.during_sleep = finish
    sky.hop()
    assert sky.orders == ["cancel 2"]
    assert "demo had already finished. Pion cancelled managed job 2" in capsys.readouterr().out
    assert read_rental_note(sky.run)[0] is None  # nothing is rented now


def test_a_second_hop_of_a_run_on_its_way_is_refused(sky):
    sky.jobs.append(ManagedJob(2, sky.name, "STARTING"))
    with pytest.raises(BadInput, match=r"is already being moved: managed jobs 1 and 2.*cancel 2"):
        sky.hop()


def test_a_run_with_a_deadline_is_moved_from_the_jobs_of_both_markets(sky):
    """A request for spot stands next to the machine on demand that owns the run."""
    spot, on_demand = (
        yaml.safe_dump({"envs": {"PION_SPOT": flag}, "run": "true"}) for flag in "10"
    )
    standing = ManagedJob(0, sky.name, "PENDING", task=spot)
    sky.jobs = [dataclasses.replace(sky.jobs[0], task=on_demand), standing]

    sky.time.during_sleep = sky.relieve
    sky.hop()
    assert set(sky.orders) == {"cancel 0", "cancel 1"}


def test_skypilot_being_down_for_a_moment_ends_no_hop(sky):
    really_submit = sky.submit

    def live():
        sky.down = False
        if head_of(sky.run).owner == OLD:
            sky.takes_over()

    def submit(task, name):
        sky.down = True
        return really_submit(task, name)

    sky.submit = submit
    sky.time.during_sleep = live
    sky.hop()


def test_a_hop_clears_a_request_to_stop_and_continues_after_ctrl_c(sky, capsys):
    ask_stop(sky.run, "pion stop")

    sky.leave_during_the_hop()
    assert pending_stop(sky.run) is None
    assert "to cancel it before its machine is up: sky jobs cancel 2" in capsys.readouterr().out
    assert sky.orders == []


def test_overrides_that_make_it_another_run_are_refused(sky):
    with pytest.raises(BadInput, match=r"is the run .*/demo-2, not .*/demo\. Nothing was rented"):
        sky.hop("name=demo-2")
    assert len(sky.jobs) == 1


def test_a_finished_run_is_not_moved(sky, capsys):
    for stage in ("sft", "evaluate"):
        sky.old.finish_stage(stage, "digest", {})
    sky.hop()
    assert "demo is finished: there is nothing to move" in capsys.readouterr().out
    assert len(sky.jobs) == 1


def test_a_machine_that_would_end_at_once_is_not_rented(sky):
    text = YAML.replace("envs: {{", "envs: {{PION_UNTIL: pretrain, ")
    with pytest.raises(BadInput, match=r"end after pretrain \(PION_UNTIL\).*Nothing was rented"):
        sky.hop(text=text)
    assert sky.launch_id == ""
