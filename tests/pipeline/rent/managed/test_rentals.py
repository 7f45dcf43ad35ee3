"""`pion rentals`: every machine, its cost, whether it is gone, and what `--reap` may end."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pion.errors import BadInput, PionError
from pipeline.cost.costs import LostMachine, keep_lost
from pipeline.rent.managed.names import cluster_name, rental_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.pods import runpod_configured
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.rentals import show_rentals
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import RentalNote, write_rental_note
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.fake_provider import ANOTHER, ME, FakeProvider
from tests.support.light_run import light_run
from tests.support.runpod_api import RunPodApi
from tests.support.states import someone

NOTE = RentalNote(0.0, "desk", "1a2b3c4d", "0123abcd", 0)


class SkyAndRunPod(FakeProvider):
    """A fake SkyPilot, and the real client of RunPod."""

    list_pods = Provider.list_pods
    terminate_pod = Provider.terminate_pod


@pytest.fixture
def run(tmp_path: Path) -> RunState:
    """A run that a pod called `one` has worked on for an hour, for $0.20."""
    run = light_run(FileStore(tmp_path / "runs"))
    claim = claim_run(run, someone(host="one"))
    began = run.clock.now() - 3600
    events = EventLog(run.store, run.name, claim.epoch)
    about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "count": 1, "spot": True}
    times = {"rented_at": began, "phases": {}, "price": 0.2, "host": "one"}
    events.append("machine", id="one", managed_job="1", **about, **times)
    events.flush()
    claim.release()
    return run


@pytest.fixture
def name(run: RunState) -> str:
    return rental_name(run.store.url, run.name)


@pytest.fixture
def provider() -> SkyAndRunPod:
    return SkyAndRunPod()


@pytest.fixture
def api(runpod_api: RunPodApi) -> RunPodApi:
    return runpod_api


Listing = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def listing(run: RunState, provider: SkyAndRunPod, capsys: pytest.CaptureFixture[str]) -> Listing:
    """Return the machines of `pion rentals RUN --json` by id."""

    def show(*, reap: bool = False, every: bool = False) -> dict[str, dict[str, Any]]:
        which = None if every else run.url
        assert show_rentals(which, reap=reap, as_json=True, provider=provider) == 0
        about = json.loads(capsys.readouterr().out)
        return {rental["id"]: rental for rental in about["rentals"]}

    return show


def pod_of(name: str, job: int, user: str = ME) -> str:
    return f"{cluster_name(name, job)}-{user}-head"


def test_a_machine_that_runpod_no_longer_lists_is_gone_and_its_cost_is_known(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str
) -> None:
    provider.jobs.append(ManagedJob(1, name, "SUCCEEDED"))
    (one,) = listing().values()
    assert (one["state"], one["job"]) == ("gone", 1)
    assert one["machine"] == "A40 on RunPod/CA, spot"
    assert 0 < one["dollars"] <= 0.21


def test_a_machine_that_works_is_running(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str
) -> None:
    provider.jobs.append(ManagedJob(1, name, "RUNNING"))
    api.rent("one", pod_of(name, 1))
    one = listing(reap=True)["one"]
    assert (one["state"], one["words"]) == ("running", "managed job 1 is RUNNING")
    assert api.ids == ["one"]  # --reap left it alone


@pytest.mark.parametrize("status", ["RUNNING", "EXITED"])
def test_a_pod_whose_job_has_ended_is_an_orphan_and_reap_ends_it(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str, status: str
) -> None:
    provider.jobs.append(ManagedJob(1, name, "CANCELLED", ended_at=1.0))
    api.rent("one", pod_of(name, 1), status)
    assert listing()["one"]["state"] == "orphan"
    assert len(api.ids) == 1  # looking ends nothing
    assert listing(reap=True)["one"]["words"] == "terminated now"
    assert api.ids == []


def test_a_pod_that_never_claimed_the_run_is_listed_too(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str
) -> None:
    provider.jobs.append(ManagedJob(2, name, "STARTING"))
    api.rent("two", pod_of(name, 2))
    found = listing()
    assert found["two"]["state"] == "running"
    assert found["two"]["begin"] is None
    assert found["one"]["state"] == "gone"


def test_a_pod_that_is_rented_now_costs_since_runpod_rented_it_out(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str
) -> None:
    provider.jobs.append(ManagedJob(2, name, "STARTING"))
    since = time.time() - 1800
    at = time.strftime("%a %b %d %Y %H:%M:%S", time.gmtime(since))
    change = f"Rented by User: {at} GMT+0000 (Coordinated Universal Time)"
    api.rent("two", pod_of(name, 2), change=change)
    two = listing()["two"]
    assert two["begin"] == int(since)
    assert two["dollars"] == pytest.approx(0.1, rel=0.1)


def lost(pod: str, run: RunState) -> LostMachine:
    """A pod of managed job 2 that a watcher saw boot for half an hour, for $0.10, and end."""
    now = run.clock.now()
    return LostMachine(pod, "RunPod", "A40", 1, 0.2, "2", now - 9000, now - 7200)


def test_a_pod_that_never_claimed_the_run_is_listed_as_gone_with_what_it_cost(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str, run: RunState
) -> None:
    provider.jobs.append(ManagedJob(2, name, "RUNNING"))
    keep_lost(run, lost("two", run))
    found = listing()
    assert set(found) == {"one", "two"}
    two = found["two"]
    assert (two["state"], two["job"]) == ("gone", 2)
    assert two["machine"] == "A40 on RunPod, never trained"
    assert two["dollars"] == pytest.approx(0.1)


def test_a_lost_pod_that_runpod_still_bills_for_is_an_orphan_all_the_same(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str, run: RunState
) -> None:
    provider.jobs.append(ManagedJob(2, name, "FAILED_SETUP", ended_at=1.0))
    api.rent("two", pod_of(name, 2))
    keep_lost(run, lost("two", run))
    assert listing()["two"]["state"] == "orphan"
    assert listing(reap=True)["two"]["words"] == "terminated now"


def test_a_pod_that_was_taken_for_lost_and_then_owned_the_run_is_listed_once(
    run: RunState,
    api: RunPodApi,
    provider: SkyAndRunPod,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keep_lost(run, lost("one", run))
    assert show_rentals(run.url, reap=False, as_json=True, provider=provider) == 0
    (one,) = json.loads(capsys.readouterr().out)["rentals"]
    assert (one["job"], one["machine"]) == (1, "A40 on RunPod/CA, spot")


def test_a_run_of_which_every_machine_was_lost_has_a_list_too(
    tmp_path: Path, api: RunPodApi, provider: SkyAndRunPod, capsys: pytest.CaptureFixture[str]
) -> None:
    new = RunState(FileStore(tmp_path / "new"), "demo")
    write_rental_note(new, NOTE, None)
    keep_lost(new, lost("two", new))
    assert show_rentals(new.url, reap=False, as_json=False, provider=provider) == 0
    out = capsys.readouterr().out
    assert "never trained" in out
    assert "gone: RunPod no longer lists it" in out
    assert "$0.10 in total" in out


def test_a_pod_of_a_job_skypilot_has_forgotten_is_an_orphan(
    listing: Listing, api: RunPodApi, name: str
) -> None:
    api.rent("one", pod_of(name, 1))
    assert listing()["one"]["state"] == "orphan"


def test_a_job_that_has_just_ended_gets_time_to_give_its_machine_back(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str, run: RunState
) -> None:
    provider.jobs.append(ManagedJob(1, name, "SUCCEEDED", ended_at=run.clock.now() - 20))
    api.rent("one", pod_of(name, 1))
    assert listing(reap=True)["one"]["state"] == "ending"
    assert len(api.ids) == 1


def test_what_another_machine_has_rented_is_never_reaped(
    listing: Listing, api: RunPodApi, name: str
) -> None:
    api.rent("theirs", pod_of(name, 1, user=ANOTHER))
    theirs = listing(reap=True)["theirs"]
    assert (theirs["state"], theirs["words"]) == (
        "unknown",
        "rented from another machine; check there",
    )
    assert len(api.ids) == 1


def test_pods_that_pion_launch_did_not_rent_are_left_out(
    listing: Listing, api: RunPodApi, name: str
) -> None:
    api.rent("web", "my-web-server")
    api.rent("other", "pion-another-11112222-3-0123abcd-head")
    assert set(listing(reap=True)) == {"one"}
    assert len(api.ids) == 2


def test_without_a_run_every_rental_of_ours_is_listed(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str
) -> None:
    provider.jobs.append(ManagedJob(1, name, "RUNNING"))
    api.rent("one", pod_of(name, 1))
    api.rent("other", "pion-another-11112222-3-0123abcd-head")
    api.rent("web", "my-web-server")
    api.rent("own", "pion-a40-2-0123abcd-head")  # `sky launch -c pion-a40-2`
    states = {pod: rental["state"] for pod, rental in listing(every=True).items()}
    assert states == {"one": "running", "other": "unknown"}


def test_a_pod_of_a_run_that_no_machine_has_claimed_and_skypilot_has_forgotten_is_found(
    tmp_path: Path, provider: SkyAndRunPod, api: RunPodApi, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FileStore(tmp_path / "empty")
    write_rental_note(RunState(store, "new"), NOTE, None)
    api.rent("lost", pod_of(rental_name(store.url, "new"), 1))
    assert show_rentals(f"{store.url}/new", reap=True, as_json=True, provider=provider) == 0
    (rental,) = json.loads(capsys.readouterr().out)["rentals"]
    assert (rental["id"], rental["state"]) == ("lost", "gone")
    assert api.ids == []


def test_a_pod_is_not_ended_because_skypilot_has_forgotten_its_job_while_its_run_is_at_work(
    listing: Listing, run: RunState, api: RunPodApi, name: str
) -> None:
    api.rent("one", pod_of(name, 1))
    claim = claim_run(run, someone())
    claim.heartbeat.beat()
    one = listing(reap=True)["one"]
    assert one["state"] == "unknown"
    assert "lists no managed job 1 with that name. The run is running" in one["words"]
    assert len(api.ids) == 1
    claim.release()
    assert listing(reap=True)["one"]["state"] == "gone"


def test_an_orphan_that_can_not_be_ended_keeps_no_other_from_its_end(
    run: RunState,
    api: RunPodApi,
    provider: SkyAndRunPod,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.rent("one", pod_of(name, 1))
    api.rent("two", pod_of(name, 2))

    really_terminate = provider.terminate_pod

    def terminate(pod: str) -> None:
        if pod == "one":
            raise PionError("RunPod could not terminate pod one: timed out")
        really_terminate(pod)

    provider.terminate_pod = terminate
    assert show_rentals(run.url, reap=True, as_json=False, provider=provider) == 1
    assert api.ids == ["one"]
    assert "RunPod could not terminate pod one: timed out" in capsys.readouterr().out


def test_the_table_says_how_to_end_orphans(
    run: RunState,
    api: RunPodApi,
    provider: SkyAndRunPod,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.rent("one", pod_of(name, 1))
    where = run.url
    show_rentals(where, reap=False, as_json=False, provider=provider)
    out = capsys.readouterr().out
    assert "1 orphaned machine is still billing. End it with:" in out
    assert f"pion rentals {where} --reap" in out
    assert "$0.20" in out


def test_when_every_rental_has_ended_it_says_that_nothing_is_rented(
    run: RunState, api: RunPodApi, provider: SkyAndRunPod, capsys: pytest.CaptureFixture[str]
) -> None:
    another = rental_name(run.store.url, "another")  # whose machines never claimed it
    provider.jobs.append(ManagedJob(1, another, "CANCELLED"))
    show_rentals(None, reap=False, as_json=False, provider=provider)
    assert capsys.readouterr().out == "nothing is rented\n"
    where = f"{run.store.url}/another"
    write_rental_note(RunState(run.store, "another"), NOTE, None)
    show_rentals(where, reap=False, as_json=False, provider=provider)
    assert capsys.readouterr().out == f"nothing is rented for {where}\n"


def test_without_a_key_for_runpod_nothing_is_called_gone(
    listing: Listing, api: RunPodApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    assert not runpod_configured()
    assert listing()["one"]["state"] == "unknown"


def test_an_unknown_run_is_bad_input(run: RunState, api: RunPodApi, provider: SkyAndRunPod) -> None:
    with pytest.raises(BadInput, match="no run 'nothing'"):
        show_rentals(f"{run.store.url}/nothing", reap=False, as_json=False, provider=provider)


def test_skypilot_is_not_started_for_a_folder_without_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = SkyAndRunPod()
    monkeypatch.setattr(provider, "start", lambda say: pytest.fail("it was started"))
    with pytest.raises(BadInput, match="no run 'null' in the store file:///dev"):
        show_rentals("/dev/null", reap=False, as_json=False, provider=provider)


# ---------------------------------------------------------------- other clouds

CLUSTER = "pion-demo-1"
JUST_NOW = -1.0  # 20 s before the test asks


@pytest.fixture
def on_aws(tmp_path: Path, run: RunState) -> None:
    """Two machines of managed job 1 on AWS, one after the other, have worked on the run too."""
    about = {"cloud": "AWS", "region": "us-east-1", "gpu": "A10G", "count": 1, "spot": True}
    for machine, age in (("aws-1", 1000), ("aws-2", 500)):
        claim = claim_run(run, someone(host=machine))
        events = EventLog(run.store, run.name, claim.epoch)
        began = {"rented_at": run.clock.now() - age, "phases": {}, "price": 0.2, "host": machine}
        where = {"managed_job": "1", "cluster": CLUSTER}
        events.append("machine", id=machine, **about, **began, **where)
        events.flush()
        claim.release()


@pytest.mark.parametrize(
    ("job", "recorded", "clusters", "states", "words"),
    [
        # SkyPilot has ended the cluster, whether or not it still knows the job.
        (
            ManagedJob(1, "", "SUCCEEDED"),
            {CLUSTER: None},
            {},
            ("gone", "gone"),
            f"SkyPilot says that the cluster {CLUSTER} was terminated",
        ),
        (
            None,
            {CLUSTER: None},
            {},
            ("gone", "gone"),
            f"SkyPilot says that the cluster {CLUSTER} was terminated",
        ),
        # While the job is live, its newest machine runs, and the previous machine was replaced. The
        # next cluster may have no record yet, and SkyPilot's list leaves out managed clusters.
        (
            ManagedJob(1, "", "RECOVERING"),
            {CLUSTER: None},
            {},
            ("unknown", "running"),
            "managed job 1 is RECOVERING",
        ),
        (
            ManagedJob(1, "", "RUNNING"),
            {},
            {},
            ("unknown", "running"),
            "managed job 1 is RUNNING",
        ),
        (
            ManagedJob(1, "", "RUNNING"),
            {},
            None,
            ("unknown", "running"),
            "managed job 1 is RUNNING",
        ),
        # SkyPilot has not ended the cluster yet.
        (
            ManagedJob(1, "", "CANCELLED", ended_at=1.0),
            {CLUSTER: "UP"},
            {},
            ("unknown", "unknown"),
            "SkyPilot still records its cluster as UP; check in the cloud",
        ),
        (
            ManagedJob(1, "", "CANCELLED", ended_at=JUST_NOW),
            {CLUSTER: "UP"},
            {},
            ("ending", "ending"),
            "managed job 1 has just stopped (CANCELLED)",
        ),
        # A machine without a record in SkyPilot is never called gone.
        (
            ManagedJob(1, "", "SUCCEEDED"),
            {},
            {},
            ("unknown", "unknown"),
            "SkyPilot does not list machines of managed jobs; check in the cloud",
        ),
        (
            ManagedJob(1, "", "SUCCEEDED"),
            {"pion-other-1": None},
            {},
            ("unknown", "unknown"),
            "SkyPilot does not list machines of managed jobs; check in the cloud",
        ),
        (
            ManagedJob(1, "", "SUCCEEDED"),
            {},
            None,
            ("unknown", "unknown"),
            "its cloud could not be asked",
        ),
        # A cluster that SkyPilot lists.
        (
            None,
            {},
            {CLUSTER: "UP"},
            ("running", "running"),
            f"SkyPilot's cluster {CLUSTER} is UP",
        ),
    ],
)
def test_a_machine_of_another_cloud_is_judged_by_what_skypilot_says(
    listing: Listing,
    api: RunPodApi,
    provider: SkyAndRunPod,
    name: str,
    on_aws: None,
    run: RunState,
    job: ManagedJob | None,
    recorded: dict[str, str | None],
    clusters: dict[str, str] | None,
    states: tuple[str, str],
    words: str,
) -> None:
    if job is not None:
        ended_at = run.clock.now() - 20 if job.ended_at == JUST_NOW else job.ended_at
        provider.jobs.append(dataclasses.replace(job, name=name, ended_at=ended_at))
    provider.recorded, provider.clusters = recorded, clusters
    found = listing()
    assert (found["aws-1"]["state"], found["aws-2"]["state"]) == states
    assert found["aws-2"]["words"] == words


def test_a_controller_that_can_not_be_reached_makes_no_orphans(
    listing: Listing, api: RunPodApi, provider: SkyAndRunPod, name: str
) -> None:
    api.rent("one", pod_of(name, 1))
    provider.down = True
    with pytest.raises(PionError, match="could not list the managed jobs"):
        listing(reap=True)
    assert len(api.ids) == 1
