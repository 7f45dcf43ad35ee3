"""`pion launch` with a deadline: what is submitted, what is written, and what is refused."""

import json

import pytest
import yaml

from pipeline.cli import main
from pipeline.rent.managed import launch as launching
from pipeline.state.notes.deadline import read_deadline
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.rent.conftest import YAML
from tests.pipeline.rent.managed.conftest import checkout_in
from tests.support.fake_provider import FakeProvider

WORKDIR = "workdir: .\n" + YAML
MIXED = """any_of:
  - {accelerators: A40, use_spot: true}
  - {accelerators: RTXA4000, use_spot: true}
  - {accelerators: A40, use_spot: false}"""


@pytest.fixture
def command(sky_home, tmp_path, monkeypatch):
    """A launch in a checkout with a job file, on spot and on-demand machines."""
    checkout_in(tmp_path, monkeypatch, tmp_path / "runs")
    return ["launch", "jobs/tiny.yaml", "--on", str(sky_home.yaml(MIXED, WORKDIR))]


@pytest.fixture
def run(tmp_path):
    return RunState(FileStore(tmp_path / "runs"), "tiny")


def markets(task):
    return sorted((next(iter(r.accelerators)), r.use_spot) for r in task.resources)


def test_with_a_deadline_only_the_spot_machines_are_submitted_at_their_price(
    command, submitted, run
):
    assert main([*command, "deadline.hours=42"]) == 130
    assert markets(submitted[0]) == [("A40", True), ("RTXA4000", True)]
    assert submitted[0].envs["PION_SPOT"] == "1"
    assert submitted[0].envs["PION_PRICES"] == '{"A40": 0.2, "RTXA4000": 0.22}'
    named = json.loads(submitted[0].envs["PION_MACHINES"])  # for whoever watches the rental
    assert [entry["use_spot"] for entry in named].count(False) == 1
    assert len(named) == 3
    assert read_deadline(run) is not None


def test_a_dry_run_shows_the_task_with_a_deadline_and_writes_none(command, run, capsys):
    assert main([*command, "deadline.hours=42", "--dry-run"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["resources"]["ordered"]
    assert [entry["use_spot"] for entry in shown] == [True, True]
    assert read_deadline(run) is None


def test_a_deadline_that_was_set_by_hand_counts_though_the_job_has_none(command, submitted, run):
    assert main([*command, "deadline.hours=42"]) == 130
    assert main([*command, "--force"]) == 130
    assert markets(submitted[1]) == [("A40", True), ("RTXA4000", True)]
    assert main(["deadline", run.url, "--off"]) == 0
    assert main([*command, "deadline.hours=42", "--force"]) == 130
    assert markets(submitted[2]) == [("A40", False), ("A40", True), ("RTXA4000", True)]
    assert not {"PION_SPOT", "PION_MACHINES"}.intersection(submitted[2].envs)


def test_a_past_moment_rents_nothing(command, submitted, run, capsys):
    assert main([*command, "deadline.at=2020-01-01T00:00Z"]) == 2
    assert "command line  deadline.at: 2020-01-01T00:00Z was" in capsys.readouterr().err
    assert submitted == []
    assert read_deadline(run) is None


def test_a_deadline_that_can_not_be_read_rents_nothing_and_says_how_to_set_it_again(
    command, submitted, run, capsys
):
    run.store.write(run.key("deadline.json"), b"{")
    assert main([*command, "deadline.hours=42"]) == 2
    assert "is damaged" in (error := capsys.readouterr().err)
    assert f"pion deadline {run.url} --hours N" in error
    assert submitted == []


def test_what_the_checks_refuse_leaves_no_deadline(command, run, monkeypatch, capsys):
    monkeypatch.setattr(launching, "Provider", FakeProvider)
    assert main([*command, "deadline.hours=0.1"]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "of work on A40 on demand, 0.1 h left" in out
    assert read_deadline(run) is None
