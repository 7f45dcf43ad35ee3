"""Results in HEAD.json have the types of their records, or the file is damaged. No command that
shows them ends as a bug, whatever number is null: a number that is not finite is null in HEAD.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.report.cleaning import cleaning_sections
from pipeline.report.model_card import model_card
from pipeline.report.page_sections import measured_sections
from pipeline.report.reading import read_history
from pipeline.report.results import Evaluated, Prepared, Published
from pipeline.run import finish
from pipeline.stages.requirements import check_requirements
from pipeline.state.head import Head, StageRecord
from pipeline.state.record_json import Damaged
from pipeline.state.status.recorded_job import know_rows
from tests.hostile.attacks import Attack, attacks_on
from tests.hostile.hostile_run import NOW
from tests.hostile.of_types import example
from tests.support.jobs import tiny_dict
from tests.support.tiny_config import tiny_config

RECORDS = [{"kind": "jsonl", "path": "records.jsonl"}]
JOB = tiny_dict(
    name="demo",
    sft__steps=None,
    sft__epochs=2,
    prefer={"steps": 5, "sources": RECORDS},
    reinforce={"steps": 5, "sources": RECORDS, "rewards": ["exact"], "max_tokens": 8},
    publish={"to": "model", "require": ["reward < 9"], "even_if_worse": True},
)
READ = Job.model_validate(JOB)
DIGESTS = digest_job(READ).stages


def good(count: int) -> dict[str, Any]:
    """Return a result of each stage, with every field."""
    prepared = example(Prepared, count)
    for stage in READ.train_stages:
        prepared[stage] = prepared.get(stage, {}) | {"train_rows": 100, "train_tokens": 1000}
    return {
        "prepare": prepared,
        "evaluate": example(Evaluated, count),
        "publish": example(Published, count) | {"target": "model"},
    }


def with_results(head: Head, results: Mapping[str, Any]) -> Head:
    key = head.stages["pretrain"].checkpoint
    stages = {name: StageRecord(DIGESTS[name], NOW, key, found) for name, found in results.items()}
    stages |= {name: StageRecord(DIGESTS[name], NOW, key) for name in READ.train_stages}
    return dataclasses.replace(head, job="9999", stages=stages)


@pytest.fixture(scope="module")
def history(run):
    run.write_job("9999", yaml.safe_dump(JOB))
    return read_history(run, READ)


@pytest.fixture
def show(history, run, monkeypatch):
    def show(results: Mapping[str, Any]) -> None:
        """Read these results as a page, a card, a status, the end of a run and publish do."""
        job, head = READ.model_copy(deep=True), with_results(history.head, results)
        know_rows(job, head)
        shown = dataclasses.replace(history, known_job=job, head=head)
        monkeypatch.setattr(finish, "read_history", lambda *_: shown)
        measured_sections(shown, shown.results)
        cleaning_sections(shown.text)
        shown.remarks()
        with contextlib.suppress(BadInput):
            check_requirements(job, job.publish, shown.results, "")
        finish.summary_rows(job, run)
        model_card(shown, tiny_config(), parameters=5, vocab_size=300)

    return show


def cases(results: Mapping[str, Any], *attacks: str) -> list[Attack]:
    """Return attacks on results; on what is the same for all models, of one model alone."""
    found = {}
    for case in attacks_on(results, attacks):
        own = len(case.place) < 4 or "text" in case.place
        if len(case.place) > 1:
            found[case.place if own else case.place[2:], case.what] = case
    return [*found.values()]


def is_number(case: Attack) -> bool:
    """Return whether a number was measured. Those of a bundle, and shares of counts, are finite."""
    known = {"baseline", "baseline_v2", "cropped", "sets"} & {*case.place}
    return isinstance(case.good, float) and case.place[0] == "evaluate" and not known


@pytest.mark.parametrize("count", [0, 3])
def test_every_number_of_results_may_be_null(show, count):
    results = good(count)
    for case in filter(is_number, cases(results, "null")):
        show(json.loads(case.on(results)))


def test_other_types_are_damaged_and_the_file_is_named(show):
    results = good(3)
    for case in cases(results, "missing", "wrong type", "null")[::3]:
        with contextlib.suppress(Damaged):
            show(json.loads(case.on(results)))
