"""`pion rentals`: every machine, what it cost, whether it is gone; and what `--reap` may end."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pion.errors import BadInput, PionError
from pipeline.cost.lost import LostMachine, keep_lost
from pipeline.rent.managed import orphans, rentals
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.names import cluster_name, rental_name
from pipeline.rent.managed.pods import Pod, list_pods, runpod_configured, terminate_pod
from pipeline.rent.managed.rentals import show_rentals
from pipeline.state.claim import claim_run
from pipeline.state.metrics import EventLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.http_body import read_body
from tests.support.light_run import light_run
from tests.support.states import someone

MINE, OTHER = "0123abcd", "99999999"


class RunPodApi:
    """RunPod's GraphQL API, for the real `runpod` package to talk to."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.status = 200
        self.error: str | None = None

    def answer(self, query: str) -> dict[str, Any]:
        if self.error is not None:
            return {"errors": [{"message": self.error}]}
        ended = re.search(r'podTerminate.*podId: "(\w+)"', " ".join(query.split()))
        if ended:
            if ended[1] not in [pod["id"] for pod in self.pods]:
                return {"errors": [{"message": "pod not found"}]}
            self.pods = [pod for pod in self.pods if pod["id"] != ended[1]]
            return {"data": {"podTerminate": None}}
        return {"data": {"myself": {"pods": self.pods}}}

    def rent(self, pod: str, name: str, status: str = "RUNNING", change: str = "") -> None:
        self.pods.append(
            {
                "id": pod,
                "name": name,
                "desiredStatus": status,
                "costPerHr": 0.2,
                "gpuCount": 1,
                "lastStatusChange": change,
                "machine": {"gpuDisplayName": "A40"},
            }
        )


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPodApi]:
    import runpod

    api = RunPodApi()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.dumps(api.answer(json.loads(read_body(self))["query"])).encode()
            self.send_response(api.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("RUNPOD_API_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(runpod, "api_key", "rpa_TEST")
    (tmp_path / ".runpod").mkdir()
    (tmp_path / ".runpod" / "config.toml").write_text('[default]\napi_key = "rpa_TEST"\n')
    yield api
    server.shutdown()
    server.server_close()


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
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[ManagedJob]:
    """What SkyPilot says; its API server is not asked."""
    found: list[ManagedJob] = []

    def managed_jobs(name: str | None) -> list[ManagedJob]:
        return [job for job in found if name in (None, job.name)]

    monkeypatch.setattr(rentals, "start_api_server", lambda say: None)
    monkeypatch.setattr(rentals, "managed_jobs", managed_jobs)
    monkeypatch.setattr(orphans, "my_hash", lambda: MINE)
    return found


@pytest.fixture
def listing(
    run: RunState, jobs: list[ManagedJob], capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, dict[str, Any]]]:
    """`pion rentals RUN --json`: its machines by id."""

    def show(*, reap: bool = False, every: bool = False) -> dict[str, dict[str, Any]]:
        which = None if every else f"{run.store.url}/{run.name}"
        assert show_rentals(which, reap=reap, as_json=True) == 0
        about = json.loads(capsys.readouterr().out)
        return {rental["id"]: rental for rental in about["rentals"]}

    return show


def pod_of(name: str, job: int, user: str = MINE) -> str:
    return f"{cluster_name(name, job)}-{user}-head"


Listing = Callable[..., dict[str, dict[str, Any]]]


def test_a_machine_that_runpod_no_longer_lists_is_gone_and_its_cost_is_known(
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str
) -> None:
    jobs.append(ManagedJob(1, name, "SUCCEEDED"))
    (one,) = listing().values()
    assert (one["state"], one["job"]) == ("gone", 1)
    assert one["machine"] == "A40 on RunPod/CA, spot"
    assert 0 < one["dollars"] <= 0.21


def test_a_machine_that_works_is_said_to_run(
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str
) -> None:
    jobs.append(ManagedJob(1, name, "RUNNING"))
    api.rent("one", pod_of(name, 1))
    one = listing(reap=True)["one"]
    assert (one["state"], one["words"]) == ("running", "managed job 1 is RUNNING")
    assert [pod["id"] for pod in api.pods] == ["one"]  # --reap left it alone


@pytest.mark.parametrize("status", ["RUNNING", "EXITED"])
def test_a_pod_whose_job_has_ended_is_an_orphan_and_reap_ends_it(
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str, status: str
) -> None:
    jobs.append(ManagedJob(1, name, "CANCELLED", ended_at=1.0))
    api.rent("one", pod_of(name, 1), status)
    assert listing()["one"]["state"] == "orphan"
    assert len(api.pods) == 1  # looking ends nothing
    assert listing(reap=True)["one"]["words"] == "terminated now"
    assert api.pods == []


def test_a_pod_that_never_claimed_the_run_is_listed_too(
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str
) -> None:
    jobs.append(ManagedJob(2, name, "STARTING"))
    api.rent("two", pod_of(name, 2))
    found = listing()
    assert found["two"]["state"] == "running"
    assert found["two"]["begin"] is None
    assert found["one"]["state"] == "gone"


def test_a_pod_that_is_rented_now_costs_since_runpod_rented_it_out(
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str
) -> None:
    jobs.append(ManagedJob(2, name, "STARTING"))
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
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str, run: RunState
) -> None:
    jobs.append(ManagedJob(2, name, "RUNNING"))
    keep_lost(run, lost("two", run))
    found = listing()
    assert set(found) == {"one", "two"}
    two = found["two"]
    assert (two["state"], two["job"]) == ("gone", 2)
    assert two["machine"] == "A40 on RunPod, never trained"
    assert two["dollars"] == pytest.approx(0.1)


def test_a_lost_pod_that_runpod_still_bills_for_is_an_orphan_all_the_same(
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str, run: RunState
) -> None:
    jobs.append(ManagedJob(2, name, "FAILED_SETUP", ended_at=1.0))
    api.rent("two", pod_of(name, 2))
    keep_lost(run, lost("two", run))
    assert listing()["two"]["state"] == "orphan"
    assert listing(reap=True)["two"]["words"] == "terminated now"


def test_a_pod_that_was_taken_for_lost_and_then_owned_the_run_is_listed_once(
    run: RunState,
    api: RunPodApi,
    jobs: list[ManagedJob],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keep_lost(run, lost("one", run))
    assert show_rentals(f"{run.store.url}/{run.name}", reap=False, as_json=True) == 0
    (one,) = json.loads(capsys.readouterr().out)["rentals"]
    assert (one["job"], one["machine"]) == (1, "A40 on RunPod/CA, spot")


def test_a_run_of_which_every_machine_was_lost_has_a_list_too(
    tmp_path: Path, api: RunPodApi, jobs: list[ManagedJob], capsys: pytest.CaptureFixture[str]
) -> None:
    new = RunState(FileStore(tmp_path / "new"), "demo")
    keep_lost(new, lost("two", new))
    assert show_rentals(f"{new.store.url}/demo", reap=False, as_json=False) == 0
    out = capsys.readouterr().out
    assert "never trained" in out
    assert "gone: RunPod lists it no more" in out
    assert "in all $0.10" in out


def test_a_pod_of_a_job_skypilot_has_forgotten_is_an_orphan(
    listing: Listing, api: RunPodApi, name: str
) -> None:
    api.rent("one", pod_of(name, 1))
    assert listing()["one"]["state"] == "orphan"


def test_a_job_that_has_just_ended_gets_time_to_give_its_machine_back(
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str, run: RunState
) -> None:
    jobs.append(ManagedJob(1, name, "SUCCEEDED", ended_at=run.clock.now() - 20))
    api.rent("one", pod_of(name, 1))
    assert listing(reap=True)["one"]["state"] == "ending"
    assert len(api.pods) == 1


def test_what_another_machine_has_rented_is_never_reaped(
    listing: Listing, api: RunPodApi, name: str
) -> None:
    api.rent("theirs", pod_of(name, 1, user=OTHER))
    theirs = listing(reap=True)["theirs"]
    assert (theirs["state"], theirs["words"]) == (
        "unknown",
        "rented from another machine; ask there",
    )
    assert len(api.pods) == 1


def test_pods_that_no_launch_of_ours_named_are_no_concern_of_ours(
    listing: Listing, api: RunPodApi, name: str
) -> None:
    api.rent("web", "my-web-server")
    api.rent("other", "pion-another-11112222-3-0123abcd-head")
    assert set(listing(reap=True)) == {"one"}
    assert len(api.pods) == 2


def test_without_a_run_every_rental_of_ours_is_listed(
    listing: Listing, api: RunPodApi, jobs: list[ManagedJob], name: str
) -> None:
    jobs.append(ManagedJob(1, name, "RUNNING"))
    api.rent("one", pod_of(name, 1))
    api.rent("other", "pion-another-11112222-3-0123abcd-head")
    api.rent("web", "my-web-server")
    api.rent("own", "pion-a40-2-0123abcd-head")  # `sky launch -c pion-a40-2`
    states = {pod: rental["state"] for pod, rental in listing(every=True).items()}
    assert states == {"one": "running", "other": "unknown"}


def test_a_pod_of_a_run_that_no_machine_has_claimed_and_skypilot_has_forgotten_is_found(
    tmp_path: Path, jobs: list[ManagedJob], api: RunPodApi, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FileStore(tmp_path / "empty")
    api.rent("lost", pod_of(rental_name(store.url, "new"), 1))
    assert show_rentals(f"{store.url}/new", reap=True, as_json=True) == 0
    (rental,) = json.loads(capsys.readouterr().out)["rentals"]
    assert (rental["id"], rental["state"]) == ("lost", "gone")
    assert api.pods == []


def test_a_pod_is_not_ended_because_skypilot_has_forgotten_its_job_while_its_run_is_at_work(
    listing: Listing, run: RunState, api: RunPodApi, name: str
) -> None:
    api.rent("one", pod_of(name, 1))
    claim = claim_run(run, someone())
    claim.heartbeat.beat()
    one = listing(reap=True)["one"]
    assert one["state"] == "unknown"
    assert "knows no managed job 1 of that name; the run is at work" in one["words"]
    assert len(api.pods) == 1
    claim.release()
    assert listing(reap=True)["one"]["state"] == "gone"


def test_an_orphan_that_can_not_be_ended_keeps_no_other_from_its_end(
    run: RunState,
    api: RunPodApi,
    jobs: list[ManagedJob],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.rent("one", pod_of(name, 1))
    api.rent("two", pod_of(name, 2))

    def terminate(pod: str) -> None:
        if pod == "one":
            raise PionError("RunPod could not terminate pod one: timed out")
        terminate_pod(pod)

    monkeypatch.setattr(rentals.runpod, "terminate_pod", terminate)
    assert show_rentals(f"{run.store.url}/{run.name}", reap=True, as_json=False) == 1
    assert [pod["id"] for pod in api.pods] == ["one"]
    assert "RunPod could not terminate pod one: timed out" in capsys.readouterr().out


def test_pods_of_the_same_job_number_on_another_computer_can_be_told_apart(
    api: RunPodApi, name: str
) -> None:
    api.rent("mine", pod_of(name, 1))
    api.rent("theirs", pod_of(name, 1, OTHER))
    assert [pod.id for pod in list_pods(rented_from=MINE)] == ["mine"]
    assert len(list_pods()) == 2


def test_the_table_says_how_to_end_orphans(
    run: RunState,
    api: RunPodApi,
    jobs: list[ManagedJob],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.rent("one", pod_of(name, 1))
    where = f"{run.store.url}/{run.name}"
    show_rentals(where, reap=False, as_json=False)
    out = capsys.readouterr().out
    assert "1 orphan" in out
    assert f"pion rentals {where} --reap" in out
    assert "$0.20" in out


def test_without_a_key_for_runpod_nothing_is_called_gone(
    listing: Listing, api: RunPodApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    assert not runpod_configured()
    assert listing()["one"]["state"] == "unknown"


def test_a_run_nobody_has_heard_of_is_bad_input(
    run: RunState, api: RunPodApi, jobs: list[ManagedJob]
) -> None:
    with pytest.raises(BadInput, match="no run 'nothing'"):
        show_rentals(f"{run.store.url}/nothing", reap=False, as_json=False)


# ---------------------------------------------------------------- other clouds


@pytest.fixture
def on_aws(tmp_path: Path, run: RunState) -> None:
    """Two machines of managed job 1 on AWS, one after the other, have worked on the run too."""
    about = {"cloud": "AWS", "region": "us-east-1", "gpu": "A10G", "count": 1, "spot": True}
    for machine, age in (("aws-1", 1000), ("aws-2", 500)):
        claim = claim_run(run, someone(host=machine))
        events = EventLog(run.store, run.name, claim.epoch)
        began = {"rented_at": run.clock.now() - age, "phases": {}, "price": 0.2, "host": machine}
        where = {"managed_job": "1", "cluster": "pion-demo-1"}
        events.append("machine", id=machine, **about, **began, **where)
        events.flush()
        claim.release()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """SkyPilot's records of clusters, those of managed jobs too; the controller is here."""
    from sky import global_user_state

    records: list[dict[str, Any]] = []

    def history(*, cluster_names: list[str]) -> list[dict[str, Any]]:
        return [record for record in records if record["name"] in cluster_names]

    monkeypatch.setattr(orphans, "controller_is_here", lambda: True)
    monkeypatch.setattr(rentals, "clusters_now", lambda: {})
    monkeypatch.setattr(global_user_state, "get_clusters_from_history", history)
    return records


def record(status: str | None, name: str = "pion-demo-1") -> dict[str, Any]:
    """A cluster that was made once; its status is None when it has ended."""
    from sky.utils.status_lib import ClusterStatus

    return {"name": name, "status": None if status is None else ClusterStatus(status)}


@pytest.mark.parametrize("job", [ManagedJob(1, "pion-demo", "SUCCEEDED"), None])
def test_a_machine_of_another_cloud_is_gone_when_skypilot_has_ended_its_cluster(
    listing: Listing,
    api: RunPodApi,
    jobs: list[ManagedJob],
    name: str,
    on_aws: None,
    recorded: list[dict[str, Any]],
    job: ManagedJob | None,
) -> None:
    if job is not None:
        jobs.append(dataclasses.replace(job, name=name))
    recorded += [record(None), record(None)]
    found = listing()
    assert {found[m]["state"] for m in ("aws-1", "aws-2")} == {"gone"}
    assert found["aws-2"]["words"] == "SkyPilot says that its cluster pion-demo-1 has ended"


def test_a_machine_of_another_cloud_is_not_gone_while_its_job_lives(
    listing: Listing,
    api: RunPodApi,
    jobs: list[ManagedJob],
    name: str,
    on_aws: None,
    recorded: list[dict[str, Any]],
) -> None:
    jobs.append(ManagedJob(1, name, "RECOVERING"))
    recorded.append(record(None))  # the next cluster has no record yet
    found = listing()
    assert (found["aws-1"]["state"], found["aws-2"]["state"]) == ("unknown", "running")


def test_a_cluster_that_skypilot_has_not_ended_is_not_gone(
    listing: Listing,
    api: RunPodApi,
    jobs: list[ManagedJob],
    name: str,
    on_aws: None,
    recorded: list[dict[str, Any]],
    run: RunState,
) -> None:
    recorded += [record("UP"), record(None)]  # the job's second machine, and its first
    jobs.append(ManagedJob(1, name, "CANCELLED", ended_at=1.0))
    assert listing()["aws-2"]["words"] == "SkyPilot still has its cluster as UP: ask its cloud"
    jobs[0] = dataclasses.replace(jobs[0], ended_at=run.clock.now() - 20)
    assert listing()["aws-2"]["state"] == "ending"


@pytest.mark.parametrize("here", [True, False])
def test_what_skypilot_has_no_records_of_is_never_called_gone(
    listing: Listing,
    api: RunPodApi,
    jobs: list[ManagedJob],
    name: str,
    on_aws: None,
    recorded: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    here: bool,
) -> None:
    monkeypatch.setattr(orphans, "controller_is_here", lambda: here)
    recorded.append(record(None, name="pion-demo-1" if not here else "pion-other-1"))
    jobs.append(ManagedJob(1, name, "SUCCEEDED"))
    assert listing()["aws-2"]["state"] == "unknown"


@pytest.mark.parametrize("listed", [{}, None])
def test_a_machine_of_another_cloud_runs_as_long_as_its_managed_job_lives(
    listing: Listing,
    api: RunPodApi,
    jobs: list[ManagedJob],
    name: str,
    on_aws: None,
    monkeypatch: pytest.MonkeyPatch,
    listed: dict[str, str] | None,
) -> None:
    monkeypatch.setattr(rentals, "clusters_now", lambda: listed)  # managed clusters are left out
    jobs.append(ManagedJob(1, name, "RUNNING"))
    found = listing()
    assert (found["aws-2"]["state"], found["aws-2"]["words"]) == (
        "running",
        "managed job 1 is RUNNING",
    )
    assert found["aws-1"]["state"] == "unknown"  # it was replaced


def test_a_machine_of_another_cloud_is_not_called_gone_without_skypilots_records(
    listing: Listing,
    api: RunPodApi,
    jobs: list[ManagedJob],
    name: str,
    on_aws: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rentals, "clusters_now", lambda: {})
    monkeypatch.setattr(orphans, "controller_is_here", lambda: False)
    jobs.append(ManagedJob(1, name, "SUCCEEDED"))
    assert {found["state"] for found in listing().values() if found["id"] != "one"} == {"unknown"}


def test_a_cluster_that_skypilot_lists_runs(
    listing: Listing,
    api: RunPodApi,
    jobs: list[ManagedJob],
    on_aws: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rentals, "clusters_now", lambda: {"pion-demo-1": "UP"})
    assert listing()["aws-2"]["words"] == "SkyPilot's cluster pion-demo-1 is UP"


def test_a_controller_that_can_not_be_reached_makes_no_orphans(
    listing: Listing, api: RunPodApi, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str | None) -> list[ManagedJob]:
        raise PionError("SkyPilot's jobs controller is INIT and can't be reached")

    api.rent("one", pod_of(name, 1))
    monkeypatch.setattr(rentals, "managed_jobs", unreachable)
    with pytest.raises(PionError, match="can't be reached"):
        listing(reap=True)
    assert len(api.pods) == 1


# ---------------------------------------------------------------- RunPod


@pytest.mark.parametrize(
    ("change", "created"),
    [
        ("Rented by User: Fri Jul 12 2024 15:14:40 GMT-0400 (Eastern Daylight Time)", 1720811680.0),
        ("Rented by User: Tue Dec 16 2025 17:44:56 GMT+0000 (Universal Time)", 1765907096.0),
        ("Rented by User: some day", None),
        ("Rented by User: Fri Jul 99 2024 15:14:40 GMT-0400", None),
        ("Exited by Runpod: Fri Jul 12 2024 15:14:40 GMT-0400", None),
        ("", None),
    ],
)
def test_when_a_pod_was_rented_is_read_from_runpods_words(
    api: RunPodApi, change: str, created: float | None
) -> None:
    api.rent("a", "pion-demo-0123abcd-12-0123abcd-head", change=change)
    (pod,) = list_pods()
    assert pod.created == created


def test_runpods_list_says_what_each_pod_is_and_costs(api: RunPodApi) -> None:
    api.rent("a", "pion-demo-0123abcd-12-0123abcd-head", "EXITED")
    (pod,) = list_pods()
    assert pod == Pod("a", "pion-demo-0123abcd-12-0123abcd-head", "EXITED", "A40", 0.2)
    assert (pod.alive, pod.job_id, pod.rented_from) == (False, 12, MINE)


@pytest.mark.parametrize("name", ["my-web-server", "pion", "pion-demo-head", "pion-demo-x-1-head"])
def test_a_pod_with_another_name_belongs_to_no_job(name: str) -> None:
    assert Pod("a", name, "RUNNING").job_id is None


def test_a_key_that_runpod_refuses_is_said_to_be_so_and_is_not_shown(api: RunPodApi) -> None:
    api.status = 401
    with pytest.raises(
        PionError, match=r"does not accept this machine's key.*`runpod config`"
    ) as e:
        list_pods()
    assert "rpa_TEST" not in str(e.value)


def test_what_runpod_says_is_passed_on(api: RunPodApi) -> None:
    api.error = "Something went wrong. Please try again later."
    with pytest.raises(PionError, match=r"RunPod could not list the pods: .*Please try again"):
        list_pods()


def test_a_pod_that_is_gone_already_is_no_error(api: RunPodApi) -> None:
    api.rent("a", "pion-demo-0123abcd-12-0123abcd-head")
    terminate_pod("a")
    terminate_pod("a")
    assert api.pods == []


def test_a_pod_that_can_not_be_ended_is_an_error(api: RunPodApi) -> None:
    api.error = "pod is locked"
    with pytest.raises(PionError, match="pod is locked"):
        terminate_pod("a")
