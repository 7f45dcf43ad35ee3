"""Several nodes get a new random token at each submission, as a secret and nowhere else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.recorded_task import NextRental, task_of
from pipeline.rent.managed.provider.task import (
    RAY_TOKEN,
    make_task,
    task_config,
    task_yaml,
    with_ray_token,
)
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.paths import RENTALS
from tests.pipeline.rent.conftest import YAML, SkyHome
from tests.support.fake_provider import JOB

HERE = "set-here-by-mistake"


@pytest.fixture(params=["declared", "not declared"])
def config(
    request: pytest.FixtureRequest, sky_home: SkyHome, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The task of two nodes, whose YAML may or may not name the token."""
    monkeypatch.setenv(RAY_TOKEN, HERE)
    text = "num_nodes: 2\n" + YAML
    if request.param == "declared":
        text = text.replace("secrets: {{", f'secrets: {{{{{RAY_TOKEN}: "", ')
    read = read_sky_yaml(sky_home.yaml(text=text))
    assert (RAY_TOKEN in read.secrets) is (request.param == "declared")
    return task_config(read, "pion-demo", {"JOB": "jobs/tiny.yaml"})


def token_of(task: Any) -> str:
    return str(task.secrets[RAY_TOKEN].get_secret_value())


def recorded(task: Any) -> ManagedJob:
    """Return the managed job of a task, with what SkyPilot records of the task."""
    record = yaml.safe_dump(task.to_yaml_config(use_user_specified_yaml=True))
    return dataclasses.replace(JOB, task=f"name: pion-demo\n---\n{record}")


def test_each_submission_has_a_new_random_token(config: dict[str, Any]) -> None:
    launched = make_task(config, {"HF_TOKEN": "hf"})
    restarted = task_of(NextRental(recorded(launched)))
    tokens = {token_of(launched), token_of(make_task(config, {})), token_of(restarted)}
    assert len(tokens) == 3
    assert {len(bytes.fromhex(token)) for token in tokens} == {32}


def test_the_token_is_in_no_record_variable_or_dry_run(config: dict[str, Any]) -> None:
    task = make_task(config, {})
    record = recorded(task).task or ""
    assert "num_nodes: 2" in record
    assert token_of(task) not in record + str(task.envs) + repr(task) + task_yaml(config, [])
    assert HERE not in record + task_yaml(config, [])


def test_one_node_gets_no_token() -> None:
    for nodes in ({}, {"num_nodes": 1}, {"num_nodes": None}):
        assert with_ray_token(nodes, {"HF_TOKEN": "hf"}) == {"HF_TOKEN": "hf"}


def test_the_yaml_for_several_nodes_names_the_token() -> None:
    names = {
        path.name for path in RENTALS if RAY_TOKEN in yaml.safe_load(path.read_text())["secrets"]
    }
    assert names == {"cpu-prepare.yaml", "multi-node.yaml"}
