"""Recorded jobs, inputs and results of stages with bad values are damaged, or shown as text."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml

from pion.untrusted import LARGEST_JOB
from pipeline.report.result_tables import (
    choice_rows,
    chosen_checkpoint,
    language_rows,
    lm_eval_rows,
    whose_bytes,
)
from pipeline.report.results import evaluated, published
from pipeline.state.record_json import Damaged
from pipeline.state.records import Head, StageRecord
from pipeline.state.run_state import RunState
from tests.hostile.hostile_run import (
    EVALUATED,
    JOB,
    NAME,
    NOW,
    PUBLISHED,
    make_hostile_run,
    path_of,
    pion,
    replace,
)
from tests.hostile.record_attacks import DEPTH, Attack, at_every_place, nested
from tests.support.jobs import tiny_dict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    return make_hostile_run(tmp_path_factory.mktemp("results") / "runs")


# ---------------------------------------------------------------- recorded jobs and inputs


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"\xff\xfe", "it is not UTF-8"), (b"#" * (LARGEST_JOB + 1), "it has more than 1,048,576")],
)
def test_a_recorded_job_is_a_text_of_limited_size(
    run: RunState, data: bytes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = path_of(run, f"jobs/{JOB}.yaml").read_bytes()
    try:
        replace(run, f"jobs/{JOB}.yaml", data)
        code, output = pion(capsys, "report", run.url)
        assert code == 2
        assert f"jobs/{JOB}.yaml is damaged: {why}" in output
        code, output = pion(capsys, "status", run.url)
        assert code == 0
        assert f"jobs/{JOB}.yaml is damaged: {why}" in output
    finally:
        replace(run, f"jobs/{JOB}.yaml", before)


def test_a_recorded_job_of_half_the_limit_is_read(run: RunState) -> None:
    text = yaml.safe_dump(tiny_dict(name=NAME)) + "# comment\n" * (LARGEST_JOB // 20)
    replace(run, "jobs/large.yaml", text.encode())
    assert run.read_job("large") == text


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"{}", b'{"inputs": 5}', b"\xff", nested(DEPTH).encode()]
)
def test_the_inputs_of_a_stage_are_an_object(run: RunState, data: bytes) -> None:
    replace(run, "stages/sft/abc.json", data)
    with pytest.raises(Damaged, match=r"stages/sft/abc\.json is damaged"):
        run.read_stage("sft", "abc")


# ---------------------------------------------------------------- results


def with_result(stage: str, data: bytes) -> Head:
    """Return a HEAD that was read with this result."""
    text = json.dumps(dataclasses.asdict(Head(stages={stage: StageRecord("d", NOW)})))
    return Head.from_json(text.replace('"result": {}', f'"result": {data.decode()}').encode(), "x")


@at_every_place(EVALUATED)
def test_a_result_is_shown_or_damaged(case: Attack) -> None:
    if case.what == "deep":
        with pytest.raises(Damaged):
            with_result("evaluate", case.on(EVALUATED))
        return
    head = with_result("evaluate", case.on(EVALUATED))
    if is_damaged(case):
        with pytest.raises(Damaged, match=r"^store/demo/HEAD\.json is damaged: stages\.evaluate\."):
            evaluated(head, "store/demo")
        return
    results: Any = evaluated(head, "store/demo")
    for row in (*language_rows(results), *choice_rows(results), *lm_eval_rows(results)):
        assert all(isinstance(cell, str) for cell in row)
    assert isinstance(chosen_checkpoint(results) + whose_bytes(results), str)


def is_damaged(case: Attack) -> bool:
    """Return whether a report can't show the attack's value."""
    name = case.place[-1]
    if case.what == "missing":
        whole = case.place[0] in ("checkpoint", "compared_text") and len(case.place) == 2
        return name in ("questions", "order") or whole
    if case.what == "escape" and name == "normalization":
        return False
    if case.place[:2] == ("lm_eval", "arc_easy") and len(case.place) == 3:
        return False  # lm-eval's own values may be anything
    if case.what in ("null", "NaN"):
        may = isinstance(case.good, float) or name in ("continuations", "trivia", "train_tokens")
        return not may
    if case.what in ("1e300", "-1"):
        return not isinstance(case.good, float)
    return True


@at_every_place(PUBLISHED)
def test_what_was_published_is_text_or_damaged(case: Attack) -> None:
    if case.what == "deep":
        return
    head = with_result("publish", case.on(PUBLISHED))
    may = case.what == "missing" or (case.what == "escape" and isinstance(case.good, str))
    may |= case.what in ("null", "NaN") and case.place != ("parameters",)
    if may:
        assert published(head, "store/demo")
        return
    with pytest.raises(Damaged, match=r"stages\.publish\.result\."):
        published(head, "store/demo")


@pytest.mark.parametrize(
    ("stage", "result", "place"),
    [
        ("evaluate", {"sft": {"bits_per_byte": "x"}}, "sft.bits_per_byte"),
        ("evaluate", {"ngram": {"order": 3, "loss": []}}, "ngram.loss"),
        ("publish", {"parameters": "many"}, "parameters"),
    ],
)
def test_a_report_names_a_result_that_is_no_number(
    run: RunState, stage: str, result: Any, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head = run.read()
    assert head is not None
    stages = {**head.stages, stage: StageRecord("d", NOW, None, result)}
    replace(run, "HEAD.json", dataclasses.replace(head, stages=stages).to_json())
    code, output = pion(capsys, "report", run.url)
    assert code == 2
    assert f"{NAME}/HEAD.json is damaged: stages.{stage}.result.{place} should be" in output
    assert pion(capsys, "status", run.url)[0] == 0
