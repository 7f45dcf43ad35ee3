"""The page, the card and the summary show what a ladder predicted next to what was reached."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from pipeline.job import Job
from pipeline.report.history import RunHistory
from pipeline.report.page_sections import measured_sections
from pipeline.report.prediction import against_result, result_sentence
from pipeline.state.head import Head, StageRecord
from tests.pipeline.report.test_model_card import JOB, RESULTS, card_of_history, history_of

EVENT: dict[str, Any] = {
    "event": "predicted",
    "epoch": 1,
    "at": 10.0,
    "ladder": "small",
    "digest": "trained",
    "macs_per_token": 2_000_000,
    "tokens": 983_040,
    "times": 12.0,
    "trusted_times": 100.0,
    "bits_per_byte": 2.1,
    "low": 2.05,
    "high": 2.15,
    "other": [],
}
BEYOND = {"times": 2500.0, "bits_per_byte": None, "low": None, "high": None}
WORDS = "predicted 2.100 bits per byte (90 %: 2.050 to 2.150) by ladder small"


def history(*events: dict[str, Any], ladder: str | None = "small") -> RunHistory:
    job = Job.model_validate(copy.deepcopy(JOB))
    job.evaluate = job.evaluate.model_copy(update={"ladder": ladder})
    head = Head().with_stage("pretrain", StageRecord("trained", 0.0))
    found = history_of(job, head=head)
    return dataclasses.replace(found, events=[*found.events, *events])


def words_of(*events: dict[str, Any], **more: Any) -> str:
    return against_result(history(*events, **more), RESULTS)


def test_prediction_and_result_stand_in_one_sentence_of_the_card_and_the_page() -> None:
    run = history(EVENT)
    sentence = f"Pretraining: {WORDS}; reached 2.081 ± 0.013."
    assert result_sentence(run, RESULTS) == sentence
    assert sentence in card_of_history(run).splitlines()
    (evaluation,) = (s for s in measured_sections(run, RESULTS) if s["title"] == "Evaluation")
    assert evaluation["blocks"][0]["text"] == sentence


def test_beyond_the_trusted_range_it_says_so_in_place_of_a_number() -> None:
    assert words_of({**EVENT, **BEYOND}) == (
        "predicted nothing by ladder small: the run has 2,500 times the FLOPs of its largest run, "
        "and it is trusted up to 100 times; reached 2.081 ± 0.013"
    )


def test_a_ladder_of_other_text_is_said_to_be_one() -> None:
    assert "whose runs had other settings of the text (data.seq_len, tokenizer.file);" in words_of(
        {**EVENT, "other": ["data.seq_len", "tokenizer.file"]}
    )
    many = [f"data.sources.{n}.path" for n in range(9)]
    assert "data.sources.3.path and 5 more)" in words_of({**EVENT, "other": many})


def test_the_first_prediction_for_the_trained_settings_counts() -> None:
    later = {**EVENT, "at": 20.0, "epoch": 2, "bits_per_byte": 9.0}
    other_settings = {**EVENT, "at": 1.0, "digest": "other", "bits_per_byte": 8.0}
    other_ladder = {**EVENT, "at": 2.0, "ladder": "wide", "bits_per_byte": 7.0}
    assert words_of(later, other_settings, other_ladder, EVENT).startswith(WORDS)


def test_a_ladder_that_was_named_too_late_is_said_to_have_predicted_nothing() -> None:
    assert words_of() == (
        "predicted nothing by ladder small: it was named after pretraining had begun; "
        "reached 2.081 ± 0.013"
    )


@pytest.mark.parametrize("result", [{}, {"pretrain": {}}, {"pretrain": {"bits_per_byte": None}}])
def test_without_a_result_nothing_is_compared(result: dict[str, Any]) -> None:
    assert result_sentence(history(EVENT), result) == ""


def test_a_job_without_a_ladder_says_nothing() -> None:
    run = history(EVENT, ladder=None)
    assert result_sentence(run, RESULTS) == ""
    assert "redicted" not in card_of_history(run)
