"""sky/bench.yaml rents a card, runs `pion.bench` on it with four packages, and ends."""

import copy
import os
import re

import pytest
import yaml

from pipeline.cli import main
from tests.paths import JOBS, REPOSITORY, SKY
from tests.support.waiting import run_to_end

FILE = SKY / "bench.yaml"
NEEDED = {"torch", "numpy", "safetensors", "tokenizers"}


@pytest.fixture(scope="module")
def config():
    return yaml.safe_load(FILE.read_text())


def test_it_needs_no_job_no_variable_and_no_secret(config):
    assert config.keys() == {"name", "workdir", "resources", "setup", "run"}


def test_the_machine_ends_by_itself_and_is_on_demand(config):
    from sky.task import Task

    (resources,) = Task.from_yaml_config(copy.deepcopy(config)).resources
    assert config["resources"]["autostop"] == {"idle_minutes": 10, "down": True}
    assert not resources.use_spot
    assert not resources.ports


def test_setup_installs_the_four_packages_and_nothing_else(config):
    (words,) = re.findall(r"uv pip install (.*)", config["setup"])
    assert {word for word in words.split() if word[0] not in "-~"} - {"bench-python"} == NEEDED


def test_the_comment_brings_the_result_to_where_plan_reads_it():
    text = FILE.read_text()
    assert "rsync 'pion-bench:bench/*.json' ~/.cache/pion/bench/ && sky down" in text


def test_run_leaves_the_result_where_the_comment_fetches_it(config, tmp_path):
    """`pion.bench` writes into the folder where it runs (tests/pion/bench/test_run_tiny.py)."""
    python = tmp_path / "bench-python" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$PYTHONPATH $PWD $@"\n')
    python.chmod(0o755)
    done = run_to_end(
        ["bash", "-c", config["run"]], cwd=REPOSITORY, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert done.stdout == f"{REPOSITORY} {tmp_path}/bench -m pion.bench\n"


def test_launch_does_not_take_it_for_a_job(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = main(["launch", str(JOBS / "demo.yaml"), "--on", str(FILE), "--dry-run"])
    assert code == 2, capsys.readouterr().out
