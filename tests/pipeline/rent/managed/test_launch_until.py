"""`pion launch --until`: what the machine is told, and what is not rented for."""

import pytest

from pion.errors import BadInput
from pipeline.cli import main
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.rent.check.deadline import check_deadline
from pipeline.rent.sky_yaml import read_sky_yaml, with_until
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.rent.conftest import YAML
from tests.pipeline.rent.managed.conftest import checkout_in
from tests.support.states import someone

BOOTED = "workdir: .\n" + YAML.replace('pion run "$JOB"', "exec bash sky/boot.sh")
PREPARES = BOOTED.replace("envs: {{", "envs: {{PION_UNTIL: prepare, ")
JOB = "jobs/tiny.yaml"


@pytest.fixture
def run(sky_home, tmp_path, monkeypatch):
    """The run of a job file in the present folder, a checkout."""
    checkout_in(tmp_path, monkeypatch, tmp_path / "runs")
    return RunState(FileStore(tmp_path / "runs"), "tiny")


def prepared(run, *overrides):
    """Let the run have prepared the data of its job with these overrides."""
    claim = claim_run(run, someone())
    claim.finish_stage("prepare", digest_job(load_job(JOB, overrides)).stages["prepare"], {})
    claim.release()


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (BOOTED, ["--until", "prepare"], "prepare"),
        (BOOTED, [], None),
        (PREPARES, [], "prepare"),
        (PREPARES, ["--until", "pretrain"], "pretrain"),
    ],
)
def test_the_machine_is_told_after_which_stage_to_stop(
    run, sky_home, submitted, text, options, told
):
    on = str(sky_home.yaml(text=text))
    assert main(["launch", JOB, "--on", on, *options]) == 130
    assert submitted[0].envs.get("PION_UNTIL") == told


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (BOOTED, ["--until", "tokenise"]),
        (BOOTED.replace("envs: {{", "envs: {{PION_UNTIL: tokenise, "), []),
    ],
)
def test_a_stage_that_the_job_does_not_have_is_refused(
    run, sky_home, submitted, capsys, text, options
):
    assert main(["launch", JOB, "--on", str(sky_home.yaml(text=text)), *options]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--until tokenise: this job has no such stage" in said
    assert "prepare, pretrain" in said
    assert submitted == []


def test_a_file_whose_machine_would_not_stop_is_refused(run, sky_home, submitted, capsys):
    on = str(sky_home.yaml(text="workdir: .\n" + YAML))
    assert main(["launch", JOB, "--on", on, "--until", "prepare"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "would do all stages" in said
    assert '--until "$PION_UNTIL"' in said
    assert submitted == []


def test_nothing_is_rented_for_stages_that_are_done(run, sky_home, submitted, capsys):
    prepared(run)
    on = str(sky_home.yaml(text=PREPARES))
    assert main(["launch", JOB, "--on", on]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "tiny has done prepare: nothing was rented. next: pretrain." in out
    assert "pion launch JOB --on SKY" in out
    assert submitted == []
    assert main(["launch", JOB, "--on", on, "--until", "pretrain"]) == 130, "this is not done"


def test_other_data_than_what_is_prepared_is_rented_for(run, sky_home, submitted):
    prepared(run, "data.held_out=0.3")
    assert main(["launch", JOB, "--on", str(sky_home.yaml(text=PREPARES))]) == 130
    assert len(submitted) == 1


def test_a_machine_that_only_prepares_is_not_measured_against_the_deadline(run, sky_home):
    job = load_job(JOB, ["deadline.hours=0.001"])
    sky_yaml = with_until(read_sky_yaml(sky_home.yaml("cpus: 8", PREPARES)), job, None)
    assert list(check_deadline(job, sky_yaml, force=False)) == []
    with pytest.raises(BadInput):
        list(check_deadline(job, with_until(sky_yaml, job, "pretrain"), force=False))
