"""`pion launch`: what SkyPilot gets, and what is refused before anything is rented."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import yaml

from pion.errors import BadInput, PionError
from pipeline.cli import main
from pipeline.job.file import load_job
from pipeline.rent.credentials import names_given, secrets_for
from pipeline.rent.managed.launch import launch, refuse_second, say_rented
from pipeline.rent.managed.provider.jobs import ENDED, ManagedJob, Place, asking_skypilot
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.recorded_task import NextRental, task_of
from pipeline.rent.managed.provider.task import make_task, task_config, task_variables
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.paths import REPOSITORY
from tests.pipeline.rent.conftest import YAML
from tests.pipeline.rent.managed.conftest import checkout_in, submit_by
from tests.support.fake_provider import FakeProvider
from tests.support.sky_catalog import Price
from tests.support.states import read, someone

SECRET = "never-to-be-seen"
WORKDIR = "workdir: .\n" + YAML
TWO_WAYS = "any_of:\n  - {accelerators: A40, use_spot: true}\n  - {accelerators: RTXA4000}"


@pytest.fixture
def project(sky_home, tmp_path, monkeypatch):
    """A checkout with a job file. SkyPilot has a price list, and its server does not run."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return checkout_in(tmp_path, monkeypatch, "s3://bucket/runs")


@pytest.fixture
def rents_nothing(monkeypatch):
    submit_by(monkeypatch, lambda *_: pytest.fail("something was rented"))


def dry_run(capsys, on, *overrides):
    assert launch("jobs/tiny.yaml", overrides, on=str(on), dry_run=True, force=False) == 0
    return capsys.readouterr().out


def variables(sky_home, resources="accelerators: A40", overrides=()):
    """Return the environment of the task that rents these machines for the job."""
    sky_yaml = read_sky_yaml(sky_home.yaml(resources, WORKDIR))
    return task_variables(sky_yaml, load_job("jobs/tiny.yaml", overrides), "jobs/tiny.yaml", [])


# ---------------------------------------------------------------- what SkyPilot gets


def test_a_dry_run_prints_the_task_that_skypilots_loader_reads_back(project, sky_home, capsys):
    import sky

    path, overrides = sky_home.yaml(TWO_WAYS, WORKDIR), ("sft.lr=1e-3", "evaluate.prompts=[a b]")
    read, again = (
        sky.Task.from_yaml_config(yaml.safe_load(dry_run(capsys, path, *overrides)))
        for _ in range(2)
    )
    assert str(read.name).startswith("pion-")
    assert read.workdir == str(project)
    assert read.envs["JOB"] == "jobs/tiny.yaml"
    assert read.envs["OVERRIDES"] == "sft.lr=1e-3 'evaluate.prompts=[a b]'"
    assert len(read.envs["PION_LAUNCH_ID"]) == 32
    assert read.envs["PION_LAUNCH_ID"] != again.envs["PION_LAUNCH_ID"]
    assert read.run == 'pion run "$JOB"'


def test_no_secret_is_ever_printed_or_kept_with_the_task(project, sky_home, capsys):
    path = sky_home.yaml(text=WORKDIR)
    assert SECRET not in dry_run(capsys, path)
    sky_yaml = read_sky_yaml(path)
    config = task_config(sky_yaml, "pion-tiny", {"JOB": "jobs/tiny.yaml"})
    made = make_task(config, secrets_for(sky_yaml.secrets))
    assert made.secrets["HF_TOKEN"].get_secret_value() == SECRET  # it does travel
    assert SECRET not in yaml.safe_dump(made.to_yaml_config(use_user_specified_yaml=True))


@pytest.mark.parametrize(
    ("resources", "prices"),
    [
        (TWO_WAYS, {"A40": 0.2, "RTXA4000": 0.25}),
        # One GPU, which counts at the higher price.
        ("accelerators: A40\nany_of: [{use_spot: true}, {use_spot: false}]", {"A40": 0.4}),
    ],
)
def test_the_machine_learns_what_it_costs_whichever_it_becomes(
    project, sky_home, resources, prices
):
    sky_home.sell({"A40": Price(spot=0.2, on_demand=0.4), "RTXA4000": Price(0.22, 0.25)})
    envs = variables(sky_home, resources)
    assert json.loads(envs["PION_PRICES"]) == prices
    assert "PION_SPOT" not in envs  # it may be either


def test_the_machine_learns_where_it_costs_more(project, sky_home):
    sky_home.sell({"A40": Price(spot=0.2, on_demand=0.4)}, {"CA": "CA-MTL-1", "SE": "SE-1"})
    sky_home.raise_prices("SE", 1.5)
    envs = variables(sky_home, "accelerators: A40\nuse_spot: true")
    more = {"A40": 0.2, "A40 on RunPod/SE": pytest.approx(0.3)}
    assert json.loads(envs["PION_PRICES"]) == more


def test_the_addresses_of_store_and_hub_travel_and_the_keys_are_secrets(
    project, sky_home, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    envs = variables(sky_home)
    assert envs["AWS_ENDPOINT_URL"] == "https://store.example"
    assert envs["HF_ENDPOINT"] == "https://hub.example"
    assert SECRET not in envs.values()


@pytest.mark.parametrize("source", ["AWS_REGION", "AWS_DEFAULT_REGION", "profile"])
def test_the_region_of_the_bucket_travels_wherever_it_is_named(
    project, sky_home, monkeypatch, source
):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    if source == "profile":
        (sky_home.folder / ".aws").mkdir()
        (sky_home.folder / ".aws" / "config").write_text("[default]\nregion = eu-west-1\n")
    else:
        monkeypatch.setenv(source, "eu-west-1")
    assert variables(sky_home)["AWS_DEFAULT_REGION"] == "eu-west-1"
    of_text = ("store=hf://tester/runs", "data.sources=[{kind: text, path: 's3://bucket/texts'}]")
    assert variables(sky_home, overrides=of_text)["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert "AWS_DEFAULT_REGION" not in variables(sky_home, overrides=of_text[:1])


def test_a_secret_that_must_be_given_is_asked_for_by_name(sky_home):
    with pytest.raises(BadInput, match=r"HF_TOKEN must be set .* export HF_TOKEN=….*Nothing was"):
        secrets_for({"HF_TOKEN": None, "AWS_ACCESS_KEY_ID": ""}, {})
    given = secrets_for({"HF_TOKEN": None, "AWS_ACCESS_KEY_ID": ""}, {"HF_TOKEN": "x", "Y": "y"})
    assert given == {"HF_TOKEN": "x"}


def test_what_travels_is_named_whether_it_was_written_down_or_is_set_here():
    declared = {"HF_TOKEN": "", "WRITTEN": "x", "MUST": None, "AWS_ACCESS_KEY_ID": ""}
    environment = {"HF_TOKEN": "x", "AWS_ACCESS_KEY_ID": "y"}
    assert names_given(declared, {"HF_TOKEN"}, environment) == ["HF_TOKEN", "WRITTEN"]


def test_a_key_that_the_job_does_not_use_is_not_sent():
    declared = {"HF_TOKEN": "", "AWS_ACCESS_KEY_ID": "", "MINE": None}
    environment = {"HF_TOKEN": "x", "AWS_ACCESS_KEY_ID": "y", "MINE": "z"}
    given = secrets_for(declared, environment, wanted={"HF_TOKEN"})
    assert given == {"HF_TOKEN": "x", "MINE": "z"}


def test_a_job_and_a_rental_of_pions_own_are_taken_by_name_and_bring_pion(project, capsys):
    launch("pion-nano", ["store=s3://bucket/runs"], on="runpod-a40", dry_run=True, force=False)
    task = yaml.safe_load(capsys.readouterr().out)
    assert task["envs"]["JOB"] == "pion-nano"
    assert task["file_mounts"] == {"~/pion": str(REPOSITORY)}
    assert task["run"] == "exec bash ~/pion/sky/boot.sh"
    assert task["workdir"] == str(project)


def test_a_job_file_that_would_not_travel_is_refused(project, sky_home, tmp_path):
    outside = tmp_path / "elsewhere.yaml"
    outside.write_text((project / "jobs" / "tiny.yaml").read_text())
    sky_yaml = sky_home.yaml(text=WORKDIR)
    with pytest.raises(BadInput, match=r"elsewhere.yaml is not inside .*project.* the `workdir`"):
        launch(str(outside), [], on=str(sky_yaml), dry_run=True, force=False)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("spot", "times"), [("true", 1), ("false", 0)])
def test_a_run_that_would_fail_is_not_rented_for_and_spot_of_one_type_is_warned_about_once(
    project, sky_home, rents_nothing, capsys, spot, times
):
    sky_yaml = sky_home.yaml(f"accelerators: A40:1\nuse_spot: {spot}", WORKDIR)
    with pytest.raises(BadInput, match=r"store from there.*Nothing was rented") as refused:
        launch("jobs/tiny.yaml", ["store=runs"], on=str(sky_yaml), dry_run=False, force=False)
    assert "spot" not in str(refused.value), "a warning refuses nothing"
    said = " ".join(capsys.readouterr().out.split())
    assert "is a folder, which would be lost with the rented" in said
    assert said.count("every machine is a spot A40") == times


JOB = ManagedJob(7, "pion-demo", "RUNNING", cloud="RunPod", region="CA")


@pytest.mark.parametrize("status", ["PENDING", "STARTING", "RUNNING", "RECOVERING", "CANCELLING"])
def test_a_second_launch_of_a_run_is_refused(run, status):
    job = dataclasses.replace(JOB, status=status)
    with pytest.raises(BadInput) as refused:
        refuse_second(run, read(run), [job])
    message = str(refused.value)
    assert f"managed job 7 is {status} on RunPod CA" in message
    assert f"`pion watch {run.store.url}/demo`" in message
    assert f"`pion hop {run.store.url}/demo --on SKY`" in message


def test_a_run_that_works_elsewhere_is_not_rented_for(run, time):
    claim = claim_run(run, someone(host="desk", pid=77))
    claim.heartbeat.beat()
    time.time += 30
    with pytest.raises(BadInput, match=r"is being run by pid 77 on desk.*30 s ago.*pion hop"):
        refuse_second(run, read(run), [])


def test_a_run_whose_owner_is_silent_or_gone_may_be_launched(run, time):
    ended = [dataclasses.replace(JOB, status=status) for status in ENDED]
    refuse_second(run, None, ended)
    refuse_second(run, read(run), ended)
    claim_run(run, someone()).heartbeat.beat()
    time.time += 61
    refuse_second(run, read(run), [])


def test_skypilots_errors_say_what_failed_and_what_to_do(sky_home):
    from sky import exceptions

    with (
        pytest.raises(BadInput, match=r"so Pion can't list.*`sky api start`"),
        asking_skypilot("list the managed jobs"),
    ):
        raise exceptions.ApiServerConnectionError("http://127.0.0.1:46580")
    with pytest.raises(BadInput, match=r"no credentials.*`sky check`"), asking_skypilot("submit"):
        raise exceptions.NoCloudAccessError("RunPod: none")
    with (
        pytest.raises(PionError, match=r"could not submit: ValueError: no such thing$"),
        asking_skypilot("submit"),
    ):
        raise ValueError("no such thing\nTraceback …")


def test_ctrl_c_while_submitting_says_what_may_happen(
    project, sky_home, tmp_path, submitted, capsys
):
    store = f"store={tmp_path / 'runs'}"
    on = str(sky_home.yaml(text=WORKDIR))
    assert main(["launch", "jobs/tiny.yaml", store, "--on", on]) == 130
    out = capsys.readouterr().out
    assert "SkyPilot may continue, and rent a machine" in out
    run = f"{FileStore(tmp_path / 'runs').url}/tiny"
    assert f"pion watch {run}\n" in out
    assert f"pion rentals {run}\n" in out


# Which variables the rented machine gets, and where SkyPilot's controller is.
SLEEP = [
    ({"PION_SPOT": "0"}, True, "until a machine owns the run. After that, it may sleep"),
    ({"PION_SPOT": "1"}, True, "while it sleeps, nothing replaces a preempted machine"),
    ({}, True, "while it sleeps, nothing replaces a preempted machine"),
    ({"PION_SPOT": "0", "PION_MACHINES": "[]"}, True, "while it sleeps, nothing"),
    ({"PION_SPOT": "1"}, False, ""),
]


@pytest.mark.parametrize(("envs", "is_here", "words"), SLEEP)
def test_a_launch_says_whether_this_machine_may_sleep(tmp_path, capsys, envs, is_here, words):
    provider = FakeProvider()
    provider.controller_is_here = lambda: is_here
    state = RunState(FileStore(tmp_path / "runs"), "tiny")
    say_rented(SimpleNamespace(name="pion-tiny", state=state, config={"envs": envs}), 7, provider)
    out = capsys.readouterr().out
    assert "managed job 7 (pion-tiny) is submitted" in out
    assert words in out
    assert ("sleep" in out) == is_here


@pytest.mark.usefixtures("submitted")  # every check passes
def test_of_two_launches_at_the_same_moment_one_rents(
    project, sky_home, tmp_path, monkeypatch, capsys
):
    store, on = f"store={tmp_path / 'runs'}", str(sky_home.yaml(text=WORKDIR))
    rented = 0

    def submit(task, name):
        nonlocal rented
        rented += 1
        # SkyPilot knows of no job yet.
        assert main(["launch", "jobs/tiny.yaml", store, "--on", on]) == 2
        raise KeyboardInterrupt

    submit_by(monkeypatch, submit)
    main(["launch", "jobs/tiny.yaml", store, "--on", on])
    assert rented == 1
    assert "another process on this machine is submitting" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["UP", "INIT"])
def test_a_controller_that_can_not_be_reached_is_not_one_without_jobs(
    sky_home, monkeypatch, status
):
    controller_is(monkeypatch, status)
    with pytest.raises(PionError, match=rf"is {status}. Pion can't reach it.*Nothing was changed"):
        Provider().managed_jobs("pion-demo")


@pytest.mark.parametrize("status", [None, "STOPPED"])
def test_a_controller_that_is_not_there_has_no_jobs(sky_home, monkeypatch, status):
    controller_is(monkeypatch, status)
    assert Provider().managed_jobs("pion-demo") == []


def controller_is(monkeypatch, status):
    """Let SkyPilot's API server say that its jobs controller can't be asked."""
    from sky import exceptions
    from sky.client import sdk
    from sky.jobs.client import sdk as jobs
    from sky.utils.status_lib import ClusterStatus

    error = exceptions.ClusterNotUpError(
        "Failed to connect to jobs controller", ClusterStatus(status) if status else None
    )
    sent = exceptions.serialize_exception(error)

    def get(request):
        raise exceptions.deserialize_exception(sent)

    monkeypatch.setattr(jobs, "queue_v2", lambda **asked: "request")
    monkeypatch.setattr(sdk, "get", get)


# ---------------------------------------------------------------- submitting a job again


def made_again(sky_yaml, *avoid):
    """Build the task again for a job that was submitted with that YAML; return both."""
    read = read_sky_yaml(sky_yaml)
    job = load_job("jobs/tiny.yaml", ["store=hf://me/runs"])
    envs = task_variables(read, job, "jobs/tiny.yaml", [])
    config = task_config(read, "pion-demo", envs | {"PION_LAUNCH_ID": "l"})
    first = make_task(config, {"HF_TOKEN": SECRET})
    record = yaml.safe_dump(first.to_yaml_config(use_user_specified_yaml=True))
    record = f"name: pion-demo\n---\n{record}"  # as SkyPilot keeps it
    submitted = dataclasses.replace(JOB, task=record)
    return task_of(NextRental(submitted, avoid=avoid)), submitted


def candidates(made):
    return {(next(iter(r.accelerators)), r.region, r.use_spot) for r in made.resources}


def test_a_job_is_submitted_again_as_the_same_launch_with_its_secrets(project, sky_home):
    made, job = made_again(sky_home.yaml(TWO_WAYS, WORKDIR))
    assert SECRET not in (job.task or "")
    assert made.envs["PION_LAUNCH_ID"] == "l"
    assert made.secrets["HF_TOKEN"].get_secret_value() == SECRET
    assert candidates(made) == {("A40", None, True), ("RTXA4000", None, False)}


def test_a_secret_that_was_given_then_must_be_given_again_and_no_other(
    project, sky_home, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)  # this job does not use it
    made, job = made_again(sky_home.yaml(TWO_WAYS, WORKDIR))
    assert made.envs["PION_SECRETS"] == "HF_TOKEN"
    assert made.secrets["HF_TOKEN"].get_secret_value() == SECRET
    assert not made.secrets["AWS_SECRET_ACCESS_KEY"].get_secret_value()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BadInput, match="HF_TOKEN must be set in the environment"):
        task_of(NextRental(job))


@pytest.mark.parametrize(
    "record", [None, "", "name: pion-demo\n", "a: [\n", "run: " + "[" * 3000, "run: &a [*a]\n"]
)
def test_a_job_without_a_record_of_its_task_can_not_be_submitted_again(record):
    with pytest.raises(BadInput, match="no record of the task of managed job 7"):
        task_of(NextRental(dataclasses.replace(JOB, task=record)))


def test_a_bad_place_is_left_out_and_other_regions_of_the_same_gpu_stay(project, sky_home):
    prices = {"A40": Price(0.2, 0.4), "RTXA4000": Price(0.22, 0.25)}
    sky_home.sell(prices, {"CA": "CA-MTL-1", "US": "US-KS-2", "SE": "SE-STO-1"})
    bad = Place("RunPod", "CA", "A40", spot=True)
    made, _ = made_again(sky_home.yaml(TWO_WAYS, WORKDIR), bad)
    assert candidates(made) == {("A40", "SE", True), ("A40", "US", True), ("RTXA4000", None, False)}


def test_the_same_gpu_on_demand_is_another_place(project, sky_home):
    bad = Place("RunPod", "CA", "RTXA4000", spot=True)  # rented on demand only
    made, _ = made_again(sky_home.yaml(TWO_WAYS, WORKDIR), bad)
    assert candidates(made) == {("A40", None, True), ("RTXA4000", None, False)}


def test_a_yaml_that_only_allows_the_bad_place_is_reported(project, sky_home):
    one_place = WORKDIR.replace("infra: runpod", "infra: runpod/CA")
    sky_yaml = sky_home.yaml("accelerators: A40\nuse_spot: true", one_place)
    with pytest.raises(BadInput, match="only allows A40 spot on RunPod/CA; add other GPUs"):
        made_again(sky_yaml, Place("RunPod", "CA", "A40", spot=True))
