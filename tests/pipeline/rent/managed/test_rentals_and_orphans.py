"""`pion rentals`: every machine, its cost, whether it is gone, and what `--reap` may end."""

import dataclasses
import json
import time
from dataclasses import dataclass

import pytest

from pion.errors import BadInput, PionError
from pipeline.cost.costs import keep_lost
from pipeline.rent.managed.names import cluster_name, rental_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.pods import runpod_configured
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.rentals_and_orphans import show_rentals
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import RentalNote, write_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.fake_provider import ANOTHER, ME, FakeProvider, note_machine
from tests.support.light_run import light_run
from tests.support.runpod_api import RunPodApi
from tests.support.states import someone

NOTE = RentalNote(0.0, "desk", "1a2b3c4d", "0123abcd", 0)


class SkyAndRunPod(FakeProvider):
    """A fake SkyPilot, and the real client of RunPod."""

    list_pods = Provider.list_pods
    terminate_pod = Provider.terminate_pod


@pytest.fixture
def run(tmp_path):
    """A run that a pod called `one` has worked on for an hour, for $0.20."""
    run = light_run(FileStore(tmp_path / "runs"))
    claim = claim_run(run, someone(host="one"))
    times = {"rented_at": run.clock.now() - 3600, "phases": {}, "price": 0.2, "host": "one"}
    note_machine(run, claim.epoch, "one", managed_job="1", **times)
    claim.release()
    return run


@dataclass
class Account:
    """SkyPilot's jobs and RunPod's pods, and `pion rentals` of the run."""

    run: RunState
    api: RunPodApi
    provider: SkyAndRunPod
    capsys: pytest.CaptureFixture[str]

    @property
    def name(self):
        return rental_name(self.run.store.url, self.run.name)

    def job(self, number, status, **more):
        """Let SkyPilot know a job of the run."""
        self.provider.jobs.append(ManagedJob(number, self.name, status, **more))

    def pod(self, name, job, status="RUNNING", user=ME, **more):
        """Let RunPod list a pod of a job of the run."""
        self.api.rent(name, f"{cluster_name(self.name, job)}-{user}-head", status, **more)

    def listing(self, run="", *, reap=False, code=0):
        """Return the machines of `pion rentals --json` of this run, another, or all, by id."""
        where = self.run.url if run == "" else run
        assert show_rentals(where, reap=reap, as_json=True, provider=self.provider) == code
        return {each["id"]: each for each in json.loads(self.capsys.readouterr().out)["rentals"]}

    def table(self, run="", *, reap=False, code=0):
        """Return what `pion rentals` prints."""
        where = self.run.url if run == "" else run
        assert show_rentals(where, reap=reap, as_json=False, provider=self.provider) == code
        return self.capsys.readouterr().out


@pytest.fixture
def account(run, runpod_api, capsys):
    return Account(run, runpod_api, SkyAndRunPod(), capsys)


def test_a_machine_that_runpod_no_longer_lists_is_gone_and_its_cost_is_known(account):
    account.job(1, "SUCCEEDED")
    (one,) = account.listing().values()
    assert (one["state"], one["job"]) == ("gone", 1)
    assert one["machine"] == "A40 on RunPod/CA, spot"
    assert 0 < one["dollars"] <= 0.21


# A pod of the run: its job (and how long ago it ended), the pod, what is said, and how it is known.
PODS = [
    ("it works", {"status": "RUNNING"}, {}, "running", "managed job 1 is RUNNING"),
    ("its job has ended", {"status": "CANCELLED", "ago": 9999}, {}, "orphan", "is CANCELLED"),
    ("it has exited, and its job has ended", {"status": "CANCELLED", "ago": 9999},
     {"status": "EXITED"}, "orphan", "EXITED, although managed job 1 is CANCELLED"),
    ("its job has just ended, and gets time", {"status": "SUCCEEDED", "ago": 20}, {}, "ending",
     "managed job 1 has just stopped (SUCCEEDED)"),
    ("SkyPilot has forgotten its job", None, {}, "orphan", "SkyPilot lists no managed job 1"),
    ("another computer has rented it", None, {"user": ANOTHER}, "unknown",
     "rented from another machine; check there"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("job", "pod", "state", "words"), [row[1:] for row in PODS], ids=[row[0] for row in PODS]
)
def test_a_pod_is_judged_by_its_job_and_reap_ends_orphans_alone(account, job, pod, state, words):
    if job is not None:
        ended_at = account.run.clock.now() - job["ago"] if "ago" in job else None
        account.job(1, job["status"], ended_at=ended_at)
    account.pod("one", 1, **pod)
    one = account.listing()["one"]
    assert one["state"] == state
    assert words in one["words"]
    assert account.api.ids == ["one"], "looking ends nothing"
    reaped = account.listing(reap=True)["one"]
    assert reaped["words"] == ("terminated now" if state == "orphan" else one["words"])
    assert account.api.ids == ([] if state == "orphan" else ["one"])


def test_a_pod_that_never_claimed_the_run_is_listed_too(account):
    account.job(2, "STARTING")
    account.pod("two", 2)
    found = account.listing()
    assert found["two"]["state"] == "running"
    assert found["two"]["begin"] is None
    assert found["one"]["state"] == "gone"


def test_a_pod_that_is_rented_now_costs_since_runpod_rented_it_out(account):
    account.job(2, "STARTING")
    since = time.time() - 1800
    at = time.strftime("%a %b %d %Y %H:%M:%S", time.gmtime(since))
    change = f"Rented by User: {at} GMT+0000 (Coordinated Universal Time)"
    account.pod("two", 2, change=change)
    two = account.listing()["two"]
    assert two["begin"] == int(since)
    assert two["dollars"] == pytest.approx(0.1, rel=0.1)


def lose(pod, run):
    """Note a pod of managed job 2 that a watcher saw boot for half an hour, for $0.10, and end."""
    lost = {"id": pod, "cloud": "RunPod", "gpu": "A40", "count": 1, "price": 0.2}
    now = run.clock.now()
    lost |= {"managed_job": "2", "begin": now - 9000, "end": now - 7200}
    keep_lost(run, lost)


def test_a_pod_that_never_claimed_the_run_is_listed_as_gone_with_what_it_cost(account):
    account.job(2, "RUNNING")
    lose("two", account.run)
    found = account.listing()
    assert set(found) == {"one", "two"}
    two = found["two"]
    assert (two["state"], two["job"]) == ("gone", 2)
    assert two["machine"] == "A40 on RunPod, never trained"
    assert two["dollars"] == pytest.approx(0.1)


def test_a_lost_pod_that_runpod_still_bills_for_is_an_orphan_all_the_same(account):
    account.job(2, "FAILED_SETUP", ended_at=1.0)
    account.pod("two", 2)
    lose("two", account.run)
    assert account.listing()["two"]["state"] == "orphan"
    assert account.listing(reap=True)["two"]["words"] == "terminated now"


def test_a_pod_that_was_taken_for_lost_and_then_owned_the_run_is_listed_once(account):
    lose("one", account.run)
    (one,) = account.listing().values()
    assert (one["job"], one["machine"]) == (1, "A40 on RunPod/CA, spot")


def test_a_run_of_which_every_machine_was_lost_has_a_list_too(account, tmp_path):
    new = RunState(FileStore(tmp_path / "new"), "demo")
    write_rental_note(new, NOTE, None)
    lose("two", new)
    out = account.table(new.url)
    assert "never trained" in out
    assert "gone: RunPod no longer lists it" in out
    assert "$0.10 in total" in out


def test_pods_that_pion_launch_did_not_rent_are_left_out(account):
    account.api.rent("web", "my-web-server")
    account.api.rent("other", "pion-another-11112222-3-0123abcd-head")
    assert set(account.listing(reap=True)) == {"one"}
    assert len(account.api.ids) == 2


def test_without_a_run_every_rental_of_ours_is_listed(account):
    account.job(1, "RUNNING")
    account.pod("one", 1)
    account.api.rent("other", "pion-another-11112222-3-0123abcd-head")
    account.api.rent("web", "my-web-server")
    account.api.rent("own", "pion-a40-2-0123abcd-head")  # `sky launch -c pion-a40-2`
    states = {pod: rental["state"] for pod, rental in account.listing(None).items()}
    assert states == {"one": "running", "other": "unknown"}
    out = account.table(None)
    assert "pod web (my-web-server), $0.20/h is RUNNING at RunPod, and `pion launch` did not" in out
    assert out.count("did not rent it") == 2
    assert "did not rent it" not in account.table()


def test_a_machine_of_the_run_that_skypilot_rented_without_pion_launch_says_so(account):
    account.api.rent("one", "sky-head")
    one = account.listing(reap=True)["one"]
    assert one["state"] == "unknown"
    assert "RUNNING at RunPod, and `pion launch` did not rent it" in one["words"]
    assert account.api.ids == ["one"]


def test_a_pod_of_a_run_that_no_machine_has_claimed_and_skypilot_has_forgotten_is_found(
    account, tmp_path
):
    account.run = RunState(FileStore(tmp_path / "empty"), "new")
    write_rental_note(account.run, NOTE, None)
    account.pod("lost", 1)
    (rental,) = account.listing(reap=True).values()
    assert (rental["id"], rental["state"]) == ("lost", "gone")
    assert account.api.ids == []


def test_a_pod_is_not_ended_because_skypilot_has_forgotten_its_job_while_its_run_is_at_work(
    account,
):
    account.pod("one", 1)
    claim = claim_run(account.run, someone())
    claim.heartbeat.beat()
    one = account.listing(reap=True)["one"]
    assert one["state"] == "unknown"
    assert "lists no managed job 1 with that name. The run is running" in one["words"]
    assert len(account.api.ids) == 1
    claim.release()
    assert account.listing(reap=True)["one"]["state"] == "gone"


def test_an_orphan_that_can_not_be_ended_keeps_no_other_from_its_end(account):
    account.pod("one", 1)
    account.pod("two", 2)
    account.api.locked = {"one"}
    said = account.table(reap=True, code=1)
    assert account.api.ids == ["one"]
    assert "could not terminate pod one: " in said


def test_the_table_says_how_to_end_orphans(account):
    account.pod("one", 1)
    out = account.table()
    assert "1 orphaned machine is still billing. End it with:" in out
    assert f"pion rentals {account.run.url} --reap" in out
    assert "$0.20" in out


def test_when_every_rental_has_ended_it_says_that_nothing_is_rented(account):
    another = rental_name(account.run.store.url, "another")  # whose machines never claimed it
    account.provider.jobs.append(ManagedJob(1, another, "CANCELLED"))
    assert account.table(None) == "nothing is rented\n"
    where = f"{account.run.store.url}/another"
    write_rental_note(RunState(account.run.store, "another"), NOTE, None)
    assert account.table(where) == f"nothing is rented for {where}\n"


def test_without_a_key_for_runpod_nothing_is_called_gone(account, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    assert not runpod_configured()
    assert account.listing()["one"]["state"] == "unknown"


def test_skypilot_is_not_started_for_a_folder_without_a_run(monkeypatch):
    provider = SkyAndRunPod()
    monkeypatch.setattr(provider, "start", lambda say: pytest.fail("it was started"))
    with pytest.raises(BadInput, match="no run 'null' in the store file:///dev"):
        show_rentals("/dev/null", reap=False, as_json=False, provider=provider)


# ---------------------------------------------------------------- other clouds

CLUSTER = "pion-demo-1"
JUST_NOW = -1.0  # 20 s before the test asks


@pytest.fixture
def on_aws(tmp_path, run):
    """Two machines of managed job 1 on AWS, one after the other, have worked on the run too."""
    about = {"cloud": "AWS", "region": "us-east-1", "gpu": "A10G", "managed_job": "1"}
    for machine, age in (("aws-1", 1000), ("aws-2", 500)):
        claim = claim_run(run, someone(host=machine))
        began = {"rented_at": run.clock.now() - age, "phases": {}, "price": 0.2, "host": machine}
        note_machine(run, claim.epoch, machine, cluster=CLUSTER, **about, **began)
        claim.release()


def job_is(status, **more):
    return ManagedJob(1, "", status, **more)


TERMINATED = f"SkyPilot says that the cluster {CLUSTER} was terminated"
NOT_LISTED = "SkyPilot does not list machines of managed jobs; check in the cloud"
GONE, RUNS, UNKNOWN = ("gone", "gone"), ("unknown", "running"), ("unknown", "unknown")
JUDGED = [
    # SkyPilot has ended the cluster, whether or not it still knows the job.
    (job_is("SUCCEEDED"), {CLUSTER: None}, {}, GONE, TERMINATED),
    (None, {CLUSTER: None}, {}, GONE, TERMINATED),
    # While the job is live, its newest machine runs, and the previous machine was replaced. The
    # next cluster may have no record yet, and SkyPilot's list leaves out managed clusters.
    (job_is("RECOVERING"), {CLUSTER: None}, {}, RUNS, "managed job 1 is RECOVERING"),
    (job_is("RUNNING"), {}, {}, RUNS, "managed job 1 is RUNNING"),
    (job_is("RUNNING"), {}, None, RUNS, "managed job 1 is RUNNING"),
    # SkyPilot has not ended the cluster yet.
    (job_is("CANCELLED", ended_at=1.0), {CLUSTER: "UP"}, {}, UNKNOWN,
     "SkyPilot still records its cluster as UP; check in the cloud"),
    (job_is("CANCELLED", ended_at=JUST_NOW), {CLUSTER: "UP"}, {}, ("ending", "ending"),
     "managed job 1 has just stopped (CANCELLED)"),
    # A machine without a record in SkyPilot is never called gone.
    (job_is("SUCCEEDED"), {}, {}, UNKNOWN, NOT_LISTED),
    (job_is("SUCCEEDED"), {"pion-other-1": None}, {}, UNKNOWN, NOT_LISTED),
    (job_is("SUCCEEDED"), {}, None, UNKNOWN, "its cloud could not be asked"),
    # A cluster that SkyPilot lists.
    (None, {}, {CLUSTER: "UP"}, ("running", "running"), f"SkyPilot's cluster {CLUSTER} is UP"),
]  # fmt: skip


@pytest.mark.parametrize(("job", "recorded", "clusters", "states", "words"), JUDGED)
def test_a_machine_of_another_cloud_is_judged_by_what_skypilot_says(
    account, on_aws, job, recorded, clusters, states, words
):
    if job is not None:
        ended_at = account.run.clock.now() - 20 if job.ended_at == JUST_NOW else job.ended_at
        account.provider.jobs.append(dataclasses.replace(job, name=account.name, ended_at=ended_at))
    account.provider.recorded, account.provider.clusters = recorded, clusters
    found = account.listing()
    assert (found["aws-1"]["state"], found["aws-2"]["state"]) == states
    assert found["aws-2"]["words"] == words


def test_a_controller_that_can_not_be_reached_makes_no_orphans(account):
    account.pod("one", 1)
    account.provider.down = True
    with pytest.raises(PionError, match="could not list the managed jobs"):
        account.listing(reap=True)
    assert len(account.api.ids) == 1
