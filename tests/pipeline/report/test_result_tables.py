"""The card and the page say what was measured, what training changed, and what was forgotten."""

import copy

import pytest

from pion.config.draft import Draft
from pion.evaluation.item_scores import with_errors
from pipeline.job import Job
from pipeline.report.blocks import share_with_interval
from pipeline.report.model_card import source_lines
from pipeline.report.result_tables import (
    before_after_blocks,
    calibration_blocks,
    calibration_in_brief,
    part_blocks,
    part_in_brief,
    start_in_words,
)
from tests.hostile.hostile_run import CALIBRATION
from tests.pipeline.report.test_model_card import JOB, card_and_page, card_of

SHA = "0123456789abcdef" * 4
STARTED = {
    name: with_errors({"response_loss": loss}) | {"text": with_errors({"bits_per_byte": bits})}
    for name, loss, bits in (
        ("base", (3.2, 0.05), (1.0, 0.2)),
        ("sft", (1.9, 0.04), (1.05, 0.2)),
        ("change", (-1.3, 0.01), (0.05, 0.01)),
    )
}
STARTED["compared_text"] = {"sha256": SHA}


def job_with(text=None):
    job = Job.model_validate(copy.deepcopy(JOB))
    job.evaluate = job.evaluate.model_copy(update={"text": text})
    return job


def compared(results):
    _, table, _ = before_after_blocks(job_with(), results)
    return table.rows


def forgot(results, text=None):
    return before_after_blocks(job_with(text), results, code="`{}`")[-1]


def with_change(change, error):
    text = with_errors({"bits_per_byte": (change, error)})
    return {**STARTED, "change": {**STARTED["change"], "text": text}}


def test_each_measure_has_a_row_with_both_sides_and_a_signed_difference():
    results = copy.deepcopy(STARTED)
    for name, value in (("base", 2.0), ("sft", 1.5), ("change", -0.5)):
        results[name]["bits_per_byte"] = value
    talks, held_out, other = compared(results)
    assert talks == (
        "loss of responses in held-out conversations (nats per token)",
        *("3.200 ± 0.050", "1.900 ± 0.040", "−1.300 ± 0.010"),
    )
    assert held_out == ("held-out text (bits per byte)", "2.000", "1.500", "−0.500")
    assert other[1:] == ("1.000 ± 0.200", "1.050 ± 0.200", "+0.050 ± 0.010")
    assert compared(STARTED) == [talks, other]


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        (0.05, 0.01, "Training made the model forget: it needs 5.0 % more bits for the same text."),
        (-0.05, 0.01, "The model forgot nothing of it: it needs 5.0 % fewer bits"),
        (0.05, 0.03, "within 2 standard errors"),
        (0.0, 0.0, "within 2 standard errors"),
        (0.05, None, "needs 5.0 % more bits for it. It is too short to tell this from chance."),
        (None, None, "could not be measured"),
    ],
)
def test_a_sentence_says_what_it_means(change, error, expected):
    assert expected in forgot(with_change(change, error))


def test_the_text_is_named_without_its_folder_and_with_its_hash():
    assert f"a sample that comes with Pion (sha256 `{SHA}`)" in forgot(STARTED)
    own = forgot(STARTED, "/home/me/notes.txt")
    assert f"The other text is `notes.txt` (sha256 `{SHA}`)" in own


def test_card_and_page_show_the_table_and_its_meaning():
    card, page = card_and_page(STARTED)
    assert "| other text (bits per byte) | 1.000 ± 0.200 | 1.050 ± 0.200 | +0.050 ± 0.010 |" in card
    assert '"other text (bits per byte)", "1.000 ± 0.200", "1.050 ± 0.200"' in page
    for shown in (card, page):
        assert "Training made the model forget" in shown
        assert SHA in shown
    assert "fine-tuned | –" not in card  # nothing was measured on text of the run's own


def test_a_run_from_random_weights_has_nothing_of_it():
    plain = {"sft": STARTED["sft"]}
    assert before_after_blocks(job_with(), plain) == []
    for shown in card_and_page(plain):
        assert "efore and after training" not in shown


def test_the_start_is_said_in_a_line():
    assert start_in_words(STARTED["base"]) == (
        "loss of responses in held-out conversations (nats per token): 3.200 ± 0.050; other text "
        "(bits per byte): 1.000 ± 0.200"
    )


def test_a_share_of_all_cases_has_an_interval_and_an_old_result_has_no_error():
    of_all = {"stop_accuracy": 1.0, "stop_accuracy_sem": 0.0}
    counted = share_with_interval({**of_all, "ends": 40}, "stop_accuracy", "ends")
    assert counted == "100.0 % (95 %: 91.2 to 100.0)"
    assert share_with_interval(of_all, "stop_accuracy", "ends") == "100.0 %"


def test_a_model_that_was_measured_on_sources_apart_has_a_column_for_each():
    bits = {"web": (1.0, 0.01), "code": (2.0, 0.02)}
    sources = {name: with_errors({"bits_per_byte": both}) for name, both in bits.items()}
    whole = {"loss": 4.0, "perplexity": 54.6, **with_errors({"bits_per_byte": (1.5, 0.011)})}
    results = dict.fromkeys(("pretrain", "untrained"), whole | {"sources": sources})
    for text in card_and_page(results):
        assert "plain means of all sources" in text
        assert text.count("on web alone") == 1
        assert text.count("1.000 ± 0.010") == text.count("2.000 ± 0.020") == 2


def test_the_card_says_the_mix_of_each_phase():
    job = copy.deepcopy(JOB)
    job["data"]["documents"] = True
    for name, source in zip(("docs", "web", "notes"), job["data"]["sources"]):
        source.pop("weight", None)
        source["name"] = name
    job["pretrain"]["phases"] = [
        {"until": 240, "mix": {"docs": 1}},
        {"until": 360, "mix": {"docs": 1, "web": 2, "notes": "4x"}},
        {"seq_len": 512, "rope_theta": 50_000},
    ]
    assert source_lines(Job.model_validate(job))[:3] + source_lines(Job.model_validate(job))[
        -3:
    ] == [
        "Docstrings, comments and `pydoc` topics of Python's standard library "
        "(pretraining, called docs)",
        "[roneneldan/TinyStories](https://huggingface.co/datasets/roneneldan/TinyStories) "
        "(pretraining, called web)",
        "`notes.txt` (text files) (pretraining, called notes)",
        "pretraining from step 1 on: docs",
        "pretraining from step 241 on: notes 4 times, the rest 33.3 % docs, 66.7 % web",
        "pretraining from step 361 on: rows of 512 tokens, θ 50,000",
    ]


MEASURED = {"loss": 3.0, "calibration": CALIBRATION}
CALIBRATED = {"sft": MEASURED, "pretrain": MEASURED, "untrained": MEASURED}
SENTENCE = (
    "Where the fine-tuned model gives a token of held-out text about 70 % (on average 70.0 %), "
    "this token is right in 62.0 % ± 1.0 of the cases (812 tokens)."
)


def rows(results):
    return calibration_blocks(results)[1].rows


def test_each_trained_model_has_a_row():
    values = ("31.2 % ± 0.3", "30.5 % ± 0.4", "2.3 % ± 0.2", "0.151 ± 0.002")
    assert rows(CALIBRATED) == [
        ("fine-tuned", "held-out text", *values),
        ("base", "held-out text", *values),
    ]


def test_the_model_before_training_has_a_row_for_each_text():
    text = {"bits_per_byte": 1.0, "calibration": CALIBRATION}
    found = rows({"base": {"text": text}, "sft": {**MEASURED, "text": text}})
    assert [row[:2] for row in found] == [
        ("fine-tuned", "held-out text"),
        ("fine-tuned", "other text"),
        ("before training", "other text"),
    ]


def test_a_sentence_says_how_often_the_model_is_right_when_it_says_70_percent():
    assert calibration_blocks(CALIBRATED)[-1] == SENTENCE


def test_with_few_tokens_of_70_percent_the_sentence_is_about_all_tokens():
    example = {**CALIBRATION["near_70"], "tokens": 99}
    for few in (example, None):
        results = {"pretrain": {"calibration": {**CALIBRATION, "near_70": few}}}
        assert calibration_blocks(results)[-1] == (
            "On held-out text, the most likely token of the base model has a probability of 31.2 % "
            "± 0.3 on average, and is right in 30.5 % ± 0.4 of the cases."
        )


def test_a_diverged_model_has_dashes():
    nothing = {name: None for name in CALIBRATION} | {"near_70": CALIBRATION["near_70"]}
    (row,) = rows({"sft": {"calibration": nothing}})
    assert row[2:] == ("–", "–", "–", "–")
    assert calibration_in_brief(nothing) == "– sure, – right (ECE –)"


def test_card_and_page_show_the_table_and_the_sentence():
    card, page = card_and_page(CALIBRATED)
    assert "| fine-tuned | held-out text | 31.2 % ± 0.3 | 30.5 % ± 0.4 | 2.3 % ± 0.2 |" in card
    assert '"held-out text", "31.2 % ± 0.3"' in page
    for text in (card, page):
        assert SENTENCE in text
    older = {"sft": {"loss": 3.0, "loss_sem": 0.1, "perplexity": 20.1, "bits_per_byte": 2.0}}
    assert calibration_blocks(older) == []
    card = card_of(results=older)
    assert "3.000 ± 0.100" in card
    assert "ECE" not in card


GREEDY = {"texts": 16, "tokens_per_pass": 1.71, "tokens_per_pass_sem": 0.042, "right": 0.631}
DRAWN = {"texts": 16, "tokens_per_pass": 1.38, "tokens_per_pass_sem": None, "right": None}
DRAFTS = {"greedy": GREEDY, "drawn": DRAWN}
WITH_DRAFTS = {"pretrain": {"loss": 3.0, "drafts": DRAFTS}}


def test_each_way_to_draw_has_a_row():
    _, table = part_blocks(WITH_DRAFTS)
    assert table.rows == [
        ("base", "the likeliest", "1.71 ± 0.04", "63.1 %"),
        ("base", "drawn at a temperature of 0.8", "1.38", "–"),
    ]
    assert part_blocks({"pretrain": {"drafts": {}}, "sft": {}}) == []


def test_card_and_page_say_what_drafts_are():
    card, page = card_and_page(WITH_DRAFTS)
    assert "| base | the likeliest | 1.71 ± 0.04 | 63.1 % |" in card
    for text in (card, page):
        assert "in one pass. This makes texts faster and never changes them." in text
        assert "1.71 ± 0.04" in text


def test_the_summary_has_the_texts_that_are_drawn_as_usual():
    said = [part_in_brief(Draft.result, found) for found in (DRAFTS, {"greedy": GREEDY})]
    assert said == [f"{n} tokens a pass (1 without drafts)" for n in ("1.38", "1.71 ± 0.04")]
