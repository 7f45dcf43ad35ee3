"""The card and the page say what was measured, what training changed, and what was forgotten."""

import copy

import pytest

from pion.evaluation.item_scores import with_errors
from pipeline.job import Job
from pipeline.report.blocks import share_with_interval
from pipeline.report.model_card import source_lines
from pipeline.report.result_tables import before_after_rows, start_in_words, what_it_forgot
from tests.pipeline.report.test_model_card import JOB, card_and_page

SHA = "0123456789abcdef" * 4
RESULTS = {
    name: with_errors({"response_loss": loss}) | {"text": with_errors({"bits_per_byte": bits})}
    for name, loss, bits in (
        ("base", (3.2, 0.05), (1.0, 0.2)),
        ("sft", (1.9, 0.04), (1.05, 0.2)),
        ("change", (-1.3, 0.01), (0.05, 0.01)),
    )
}
RESULTS["compared_text"] = {"sha256": SHA}


def job_with(text=None):
    job = Job.model_validate(copy.deepcopy(JOB))
    job.evaluate = job.evaluate.model_copy(update={"text": text})
    return job


def with_change(change, error):
    text = with_errors({"bits_per_byte": (change, error)})
    return {**RESULTS, "change": {**RESULTS["change"], "text": text}}


def test_each_measure_has_a_row_with_both_sides_and_a_signed_difference():
    results = copy.deepcopy(RESULTS)
    for name, value in (("base", 2.0), ("sft", 1.5), ("change", -0.5)):
        results[name]["bits_per_byte"] = value
    talks, held_out, other = before_after_rows(job_with(), results)
    assert talks == (
        "loss of responses in held-out conversations (nats per token)",
        *("3.200 ± 0.050", "1.900 ± 0.040", "−1.300 ± 0.010"),
    )
    assert held_out == ("held-out text (bits per byte)", "2.000", "1.500", "−0.500")
    assert other[1:] == ("1.000 ± 0.200", "1.050 ± 0.200", "+0.050 ± 0.010")
    assert before_after_rows(job_with(), RESULTS) == [talks, other]


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
    assert expected in what_it_forgot(job_with(), with_change(change, error))


def test_the_text_is_named_without_its_folder_and_with_its_hash():
    sample = what_it_forgot(job_with(), RESULTS, code="`{}`")
    assert f"a sample that comes with Pion (sha256 `{SHA}`)" in sample
    own = what_it_forgot(job_with("/home/me/notes.txt"), RESULTS, code="`{}`")
    assert f"The other text is `notes.txt` (sha256 `{SHA}`)" in own


def test_card_and_page_show_the_table_and_its_meaning():
    card, page = card_and_page(RESULTS)
    assert "| other text (bits per byte) | 1.000 ± 0.200 | 1.050 ± 0.200 | +0.050 ± 0.010 |" in card
    assert '"other text (bits per byte)", "1.000 ± 0.200", "1.050 ± 0.200"' in page
    for shown in (card, page):
        assert "Training made the model forget" in shown
        assert SHA in shown
    assert "fine-tuned | –" not in card  # nothing was measured on text of the run's own


def test_a_run_from_random_weights_has_nothing_of_it():
    plain = {"sft": RESULTS["sft"]}
    assert before_after_rows(job_with(), plain) == []
    assert what_it_forgot(job_with(), plain) == ""
    for shown in card_and_page(plain):
        assert "efore and after training" not in shown


def test_the_start_is_said_in_a_line():
    assert start_in_words(RESULTS["base"]) == (
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
