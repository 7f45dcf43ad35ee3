"""Which machines of a YAML SkyPilot may rent, and in which order it tries them."""

import dataclasses
import json

import pytest
import yaml

from pipeline.rent.managed.launch import launch
from pipeline.rent.managed.provider.recorded_task import NextRental, task_of
from pipeline.rent.managed.provider.task import (
    RAY_TOKEN,
    WANTED,
    make_task,
    task_config,
    task_yaml,
    with_ray_token,
)
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.paths import RENTALS, REPOSITORY
from tests.pipeline.rent.conftest import YAML
from tests.support.fake_provider import JOB
from tests.support.jobs import tiny_dict
from tests.support.sky_catalog import Price

LISTED = """ordered:
  - {accelerators: A40, use_spot: true}
  - {accelerators: RTXA4000}
  - {accelerators: RTXA5000, use_spot: true}"""
BY_PRICE = YAML.replace("JOB: null", 'JOB: null, PION_CHEAPEST_FIRST: "1"')
# Fits on the A40, but not on the others.
LARGE = {"d_model": 8192, "n_layers": 3, "n_heads": 64, "n_kv_heads": 8, "d_ff": 22016}
TODAY = {"A40": Price(0.5, 0.9), "RTXA4000": Price(0.3, 0.1), "RTXA5000": Price(0.2, 0.4)}


def order(path):
    """Return each GPU and whether it is spot, as SkyPilot's own loader reads the task."""
    sky_yaml = read_sky_yaml(path)
    envs = {"JOB": "jobs/tiny.yaml"}
    task = make_task(task_config(sky_yaml, "pion-tiny", envs), {})
    assert isinstance(task.resources, list), "SkyPilot keeps no order of a set"
    return [(next(iter(found.accelerators)), found.use_spot) for found in task.resources]


def test_alternatives_are_tried_spot_first_and_by_todays_price(sky_home):
    sky_home.sell(TODAY)
    any_of = sky_home.yaml(LISTED.replace("ordered", "any_of"))
    assert order(any_of) == [("RTXA5000", True), ("A40", True), ("RTXA4000", False)]


def test_the_users_own_order_is_kept(sky_home):
    sky_home.sell(TODAY)
    assert order(sky_home.yaml(LISTED)) == [("A40", True), ("RTXA4000", False), ("RTXA5000", True)]


def test_what_nobody_prices_or_offers_comes_last(sky_home):
    sky_home.sell({"A40": Price(None, 0.9), "RTXA5000": Price(0.2, 0.4)})
    any_of = sky_home.yaml("any_of:\n  - {accelerators: A40}\n  - {accelerators: RTXA5000}")
    assert order(any_of) == [("RTXA5000", False), ("A40", False)]
    spot = "any_of:\n  - {accelerators: A40, use_spot: true}\n  - {accelerators: RTXA5000}"
    assert order(sky_home.yaml(spot))[-1] == ("RTXA5000", False)


@pytest.mark.parametrize("name", ["runpod-spot.yaml", "cloud-spot.yaml"])
def test_our_lists_of_usual_prices_follow_todays(sky_home, name):
    prices = {"A40": Price(0.5, 0.9), "RTXA5000": Price(0.1, 0.4), "L40S": Price(0.3, 0.8)}
    sky_home.sell(prices)
    sky_yaml = read_sky_yaml(REPOSITORY / "sky" / name)
    assert sky_yaml.envs[WANTED] == "1"
    priced = [gpu for gpu, _ in order(REPOSITORY / "sky" / name) if gpu in prices]
    if name == "runpod-spot.yaml":
        assert priced == ["RTXA5000", "L40S", "A40"]


# ---------------------------------------------------------------- what will not do


@pytest.fixture
def sent(sky_home, tmp_path, capsys):
    """`pion launch --dry-run` of a tiny job: the task, as SkyPilot's own loader reads it."""

    def find(resources, text=YAML, *, force=False, **changes):
        import sky

        job = tmp_path / "job.yaml"
        job.write_text(yaml.safe_dump(tiny_dict(store="s3://bucket/runs", **changes)))
        on = str(sky_home.yaml(resources, text))
        assert launch(str(job), [], on=on, dry_run=True, force=force) == 0
        return sky.Task.from_yaml_config(yaml.safe_load(capsys.readouterr().out))

    return find


def gpus(task):
    return [next(iter(found.accelerators)) for found in task.resources]


@pytest.mark.parametrize(
    ("text", "left"),
    [(YAML, ["A40", "L40S", "A100-80GB"]), (BY_PRICE, ["L40S", "A40", "A100-80GB"])],
    ids=["in the list's order", "by price"],
)
def test_what_is_too_small_for_the_job_is_left_out(sent, sky_home, text, left):
    sky_home.sell(TODAY | {"L40S": Price(0.4, 0.9)})  # nobody prices the A100-80GB
    more = "\n  - {accelerators: L40S, use_spot: true}\n  - {accelerators: A100-80GB}"
    task = sent(LISTED + more, text, model=LARGE)
    assert gpus(task) == left
    for found in task.resources:
        assert found.disk_size == 60
        assert found.job_recovery["recover_on_exit_codes"] == [75]


@pytest.mark.parametrize("kind", ["ordered", "any_of"])
def test_the_only_machine_left_is_the_one_that_will_do(sent, sky_home, kind):
    sky_home.sell(TODAY)
    task = sent(LISTED.replace("ordered", kind), model=LARGE)
    assert gpus(task) == ["A40"]
    assert task.envs["PION_SPOT"] == "1", "the on-demand machine is gone"
    assert json.loads(task.envs["PION_PRICES"]) == {"A40": 0.5}


def test_a_limit_on_the_price_of_every_machine_is_told_to_the_machine(sent, sky_home):
    sky_home.sell(TODAY)
    limited = LISTED.replace("}", ", max_hourly_cost: 0.6}")
    task = sent(limited)
    assert (gpus(task), task.envs["PION_MAX_HOURLY_COST"]) == (
        ["A40", "RTXA4000", "RTXA5000"],
        "0.6",
    )
    assert (
        "PION_MAX_HOURLY_COST" not in sent(LISTED.replace("}", ", max_hourly_cost: 0.6}", 1)).envs
    )


def test_spot_above_the_on_demand_price_is_left_out_unless_forced(sent, sky_home):
    sky_home.sell(TODAY | {"A40": Price(0.95, 0.9)})
    assert gpus(sent(LISTED)) == ["RTXA4000", "RTXA5000"]
    assert gpus(sent(LISTED, force=True)) == ["A40", "RTXA4000", "RTXA5000"]


def test_what_nobody_offers_today_is_left_out_if_it_would_be_too_small(sent, sky_home):
    sky_home.sell({"A40": Price(0.5, 0.9)})
    assert gpus(sent(LISTED, model=LARGE)) == ["A40"]
    assert gpus(sent(LISTED)) == ["A40", "RTXA4000", "RTXA5000"], "it may be offered tomorrow"


def test_without_a_catalog_only_what_is_known_to_be_too_small_is_left_out(sent, sky_home):
    sky_home.lose_catalog()
    assert gpus(sent(LISTED)) == ["A40", "RTXA4000", "RTXA5000"]
    assert gpus(sent(LISTED, model=LARGE)) == ["A40"]


def test_where_nothing_will_do_the_yaml_stays_as_it_is(sent, sky_home):
    sky_home.sell(TODAY)
    huge = LARGE | {"n_layers": 40}
    assert gpus(sent(LISTED, model=huge)) == ["A40", "RTXA4000", "RTXA5000"]


# ---------------------------------------------------------------- the token of several nodes

HERE = "set-here-by-mistake"


@pytest.fixture(params=["declared", "not declared"])
def config(request, sky_home, monkeypatch):
    """The task of two nodes, whose YAML may or may not name the token."""
    monkeypatch.setenv(RAY_TOKEN, HERE)
    text = "num_nodes: 2\n" + YAML
    if request.param == "declared":
        text = text.replace("secrets: {{", f'secrets: {{{{{RAY_TOKEN}: "", ')
    read = read_sky_yaml(sky_home.yaml(text=text))
    assert (RAY_TOKEN in read.secrets) is (request.param == "declared")
    return task_config(read, "pion-demo", {"JOB": "jobs/tiny.yaml"})


def token_of(task):
    return str(task.secrets[RAY_TOKEN].get_secret_value())


def recorded(task):
    """Return the managed job of a task, with what SkyPilot records of the task."""
    record = yaml.safe_dump(task.to_yaml_config(use_user_specified_yaml=True))
    return dataclasses.replace(JOB, task=f"name: pion-demo\n---\n{record}")


def test_each_submission_has_a_new_random_token(config):
    launched = make_task(config, {"HF_TOKEN": "hf"})
    restarted = task_of(NextRental(recorded(launched)))
    tokens = {token_of(launched), token_of(make_task(config, {})), token_of(restarted)}
    assert len(tokens) == 3
    assert {len(bytes.fromhex(token)) for token in tokens} == {32}


def test_the_token_is_in_no_record_variable_or_dry_run(config):
    task = make_task(config, {})
    record = recorded(task).task or ""
    assert "num_nodes: 2" in record
    assert token_of(task) not in record + str(task.envs) + repr(task) + task_yaml(config, [])
    assert HERE not in record + task_yaml(config, [])


def test_one_node_gets_no_token():
    for nodes in ({}, {"num_nodes": 1}, {"num_nodes": None}):
        assert with_ray_token(nodes, {"HF_TOKEN": "hf"}) == {"HF_TOKEN": "hf"}


def test_the_yaml_for_several_nodes_names_the_token():
    names = {
        path.name for path in RENTALS if RAY_TOKEN in yaml.safe_load(path.read_text())["secrets"]
    }
    assert names == {"cpu-prepare.yaml", "multi-node.yaml"}
