"""What the pages about preferences show is read as it stands there."""

import json
import re

import yaml

from pion.data.preference.layouts import Pair, parse_preference
from pion.train.preference import BETA, WITHOUT_REFERENCE
from pipeline.stages.requirements import check_names
from pipeline.training.reference.compute import KEPT_SECONDS
from tests.paths import REPOSITORY
from tests.support.jobs import tiny_job
from tests.support.published_models import load_shipped

TASK, REFERENCE, LORA = (
    (REPOSITORY / "docs" / f"{name}.md").read_text() for name in ("preferences", "prefer", "lora")
)


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", page, re.S)


def test_its_job_is_valid(tmp_path):
    job, _ = blocks(TASK, "yaml")
    path = tmp_path / "job.yaml"
    path.write_text(job)
    loaded = load_shipped(path)
    assert loaded.stages == ["prepare", "prefer", "evaluate", "publish"]
    assert loaded.section("prefer").needs_reference


def test_its_conditions_name_what_is_measured():
    _, conditions = blocks(TASK, "yaml")
    required = yaml.safe_load(conditions)["publish"]["require"]
    said = TASK.partition("Other names are")[2]
    measured = set(re.findall(r"`(prefer\.[a-z_.]+)`", said)) - {"prefer.preferences"}
    assert len(measured) > 4
    prefer = {"steps": 5, "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}]}
    require = [*required, *(f"{name} > 0" for name in measured)]
    job = tiny_job(prefer=prefer, publish={"to": "model", "require": require})
    assert job.publish is not None
    check_names(job, job.publish)


def test_its_job_with_lora_trains_the_additions_of_sft_further(tmp_path):
    first, _ = blocks(TASK, "yaml")
    *_, lora = blocks(LORA, "yaml")
    path = tmp_path / "job.yaml"
    path.write_text("\n".join([*first.splitlines()[:2], lora]))
    assert load_shipped(path).lora_before("prefer") == "sft"


def test_its_line_is_a_pair():
    (line,) = blocks(REFERENCE, "json")
    assert isinstance(parse_preference(json.loads(line), "here"), Pair)


def test_its_table_has_every_loss_that_can_be_trained():
    rows = re.findall(r"^\| (`.+?) \| (yes|no) \|", REFERENCE, re.M)
    needed = {loss: answer for cell, answer in rows for loss in re.findall(r"`([^`]+)`", cell)}
    assert needed.keys() == BETA.keys()
    assert {loss for loss, answer in needed.items() if answer == "no"} == set(WITHOUT_REFERENCE)


def test_what_a_death_costs_is_what_the_code_says():
    assert f"loses at most {KEPT_SECONDS:.0f} seconds" in re.sub(r"\s+", " ", REFERENCE)
