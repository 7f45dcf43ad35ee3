"""`pion check --on`: what would fail on the machines of a SkyPilot YAML."""

import os
import threading

import pytest
import yaml

from pipeline.data.s3_files import S3File
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.rent.check import command
from pipeline.rent.check import machines as check_machines
from pipeline.rent.check.command import run_checks, show_check
from pipeline.rent.check.rental import CONTROLLER_SETTING, LOOPBACK_VARIABLE
from pipeline.rent.plan.prices import Offer
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.stores import FileStore
from tests.paths import RENTALS
from tests.pipeline.rent.check.checked_job import row_of, unknown, wrong
from tests.pipeline.rent.check.conftest import WORKDIR
from tests.support.bucket_files import BucketFiles
from tests.support.hub_server import READ_TOKEN, hub_server
from tests.support.light_run import light_run
from tests.support.rehearsal import PAGE, steps_of
from tests.support.s3_server import SECRET_KEY

ON_A40 = "1 × A40 on demand on RunPod"


def with_controller_here(sky_home):
    from sky import skypilot_config

    (sky_home.folder / ".sky/config.yaml").write_text(f"{CONTROLLER_SETTING}\n")
    skypilot_config.safe_reload_config()


def test_a_good_rental_passes_every_check_and_shows_no_secret(
    case, sky_home, runpod_api, s3_store, monkeypatch
):
    with_controller_here(sky_home)
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    monkeypatch.setenv("HF_TOKEN", "hf_never_to_be_seen")
    job = case.job(store=s3_store)
    on = read_sky_yaml(sky_home.yaml(text=WORKDIR.replace("{folder}", str(case.folder))))
    found = run_checks(job, on, path=str(case.folder / "job.yaml"))
    rows = {row.name: row for row in found}
    assert {name: row.ok for name, row in rows.items()} == dict.fromkeys(rows, True)
    machine = rows[ON_A40]
    assert "4×1 sequences" in machine.words
    assert "$0.40/h" in machine.words
    assert "hf_never_to_be_seen" not in repr(rows)
    assert SECRET_KEY not in repr(rows)


@pytest.mark.parametrize("path", RENTALS, ids=lambda path: path.stem)
def test_every_rental_of_ours_passes_temporary_keys_on(path):
    assert yaml.safe_load(path.read_text())["secrets"]["AWS_SESSION_TOKEN"] == ""


def test_a_login_to_the_hub_that_does_not_travel(on_runpod, monkeypatch, tmp_path):
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "hf", token=None)
        (tmp_path / "hf").mkdir(exist_ok=True)
        (tmp_path / "hf" / "token").write_text(READ_TOKEN)  # as `hf auth login` leaves it
        hub.add_repo("user/data", "dataset", {"a.jsonl": b'{"text": "a"}\n'}, private=True)
        source = {"data__sources": [{"kind": "hub", "repo": "user/data"}]}
        unknown(on_runpod("Hub login", **source), "user/data is private or gated", "HF_TOKEN=")
        assert on_runpod("Hub login") is None
        monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
        assert on_runpod("Hub login", **source) is None
        text = WORKDIR.replace('HF_TOKEN: "", ', "")
        unknown(on_runpod("Hub login", text=text, **source), "add HF_TOKEN to `secrets:`")


def test_a_controller_on_this_machine_and_a_server_that_has_not_read_the_setting(
    on_runpod, sky_home, monkeypatch
):
    with_controller_here(sky_home)
    assert "while it sleeps" in on_runpod("controller").words
    monkeypatch.setattr("pipeline.rent.check.rental._server_runs", lambda: True)
    wrong(on_runpod("controller"), "has not read", "sky api stop")


def test_a_job_file_outside_the_workdir_is_not_copied(on_runpod, tmp_path):
    outside = tmp_path.parent / "job.yaml"
    wrong(on_runpod("files", path=outside), "the job file", str(outside), "outside")


def test_a_source_in_a_bucket_does_not_travel_and_needs_the_keys_and_the_address_of_its_service(
    on_runpod, case, s3, monkeypatch
):
    s3.use(monkeypatch)
    objects = BucketFiles(s3, case.folder)
    objects.put("text/one.txt", b"words\n" * 2000)
    source = {"data__sources": [{"kind": "text", "path": f"{objects.url}/text"}]}
    assert on_runpod("files", **source).ok
    assert on_runpod("data.sources.0", **source).words == "1 file, 12 kB"
    large = os.stat_result((0,) * 6 + (7 * 10**9, 0, 0, 0))
    monkeypatch.setattr(S3File, "stat", lambda file, **how: large)
    assert "7.0 data" in on_runpod("disk", **source).words  # only what is prepared of them
    hub = source | {"store": "hf://tester/runs"}
    wrong(on_runpod("store from there", **hub), s3.url, "A rented machine can't reach it")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    wrong(on_runpod("credentials", **source), "AWS_SECRET_ACCESS_KEY is not set here (for data.so")


def test_a_key_that_the_cloud_refuses(on_runpod, runpod_api):
    runpod_api.status = 401
    wrong(on_runpod("RunPod"), "nauthorized", "Run: runpod config")


def test_the_first_rental_is_within_its_budget(tmp_path, sky_home):
    """On the page. Only a rental test runs its commands."""
    (words,) = {step.command for step in steps_of(PAGE.read_text()) if "pion check" in step.command}
    overrides = [word for word in words.split() if "=" in word]
    job = load_job("jobs/rental-test.yaml", [*overrides, f"store={tmp_path}"])
    assert row_of("budget", job, read_sky_yaml("sky/runpod-spot.yaml")).ok


def test_a_run_that_is_finished_costs_nothing_more(on_runpod, case):
    store = FileStore(case.folder / "runs")
    job = case.job(budget={"hours": 1e-9})
    claim = claim_run(light_run(store, "tiny"), Owner.me())
    for stage, digest in digest_job(job).stages.items():
        claim.finish_stage(stage, digest, {})
    claim.release()
    unknown(on_runpod("budget", budget={"hours": 1e-9}), "budget.hours 1e-09 is below")


def test_the_price_is_that_of_all_nodes(on_runpod, monkeypatch):
    offer = Offer("A40", 1, "RunPod", "CA", False, 0.2, 0.4, 40 * 2**30, 60)
    monkeypatch.setattr(check_machines, "look_up", lambda *_: offer)
    row = on_runpod(ON_A40, text=WORKDIR + "num_nodes: 2\n")
    assert "$0.80/h for 2 nodes, about " in row.words
    assert " (several GPUs: not measured), $" in row.words


@pytest.mark.parametrize("there", [True, False], ids=["without JOB", "not there"])
def test_a_useless_yaml_is_one_row_next_to_those_of_the_job(there, case, sky_home, shown):
    path = sky_home.yaml(text="resources: {{accelerators: A40}}\nrun: x\n")
    code, rows = shown(case.path(), path if there else path.with_name("missing.yaml"))
    assert (code, rows["rental"]["ok"]) == (2, False)
    assert ("has no JOB" if there else "no SkyPilot YAML at") in rows["rental"]["words"]
    assert rows["store"]["ok"]


def test_a_yaml_that_skypilot_can_not_read_in_time_is_not_waited_for(case, monkeypatch, shown):
    forever = threading.Event()
    monkeypatch.setattr(command, "read_sky_yaml", lambda path: forever.wait())
    monkeypatch.setattr(command, "RENTAL_SECONDS", 0.1)
    code, rows = shown(case.path(), "sky/runpod-spot.yaml")
    forever.set()
    assert (code, rows["rental"]["ok"]) == (1, None)
    for words in ("sky/runpod-spot.yaml", "in time", "nothing was rented"):
        assert words in rows["rental"]["words"]
    assert rows["store"]["ok"], "the job is checked all the same"


def test_the_table_marks_what_is_wrong(case, sky_home, capsys):
    on = str(sky_home.yaml(text=WORKDIR.replace("{folder}", str(case.folder))))
    assert show_check(str(case.path()), [], on=on, force=False, as_json=False) == 2
    lines = capsys.readouterr().out.splitlines()
    marks = {line[3:].split("  ")[0]: line[0] for line in lines if line[:1] in "✓✗?"}
    assert marks["store"] == "✓"
    assert marks["store from there"] == "✗"
    assert marks["RunPod"] == "✗"
