"""The card, the page and the summary say how far a model's probabilities can be trusted."""

from pipeline.report.calibration import calibration_in_brief, calibration_in_words, calibration_rows
from tests.hostile.hostile_run import CALIBRATION
from tests.pipeline.report.test_model_card import card_and_page, card_of

MEASURED = {"loss": 3.0, "calibration": CALIBRATION}
RESULTS = {"sft": MEASURED, "pretrain": MEASURED, "untrained": MEASURED}
SENTENCE = (
    "Where the fine-tuned model gives a token of held-out text about 70 % (on average 70.0 %), "
    "this token is right in 62.0 % ± 1.0 of the cases (812 tokens)."
)


def test_each_trained_model_has_a_row():
    values = ("31.2 % ± 0.3", "30.5 % ± 0.4", "2.3 % ± 0.2", "0.151 ± 0.002")
    assert calibration_rows(RESULTS) == [
        ("fine-tuned", "held-out text", *values),
        ("base", "held-out text", *values),
    ]


def test_the_model_before_training_has_a_row_for_each_text():
    text = {"bits_per_byte": 1.0, "calibration": CALIBRATION}
    found = calibration_rows({"base": {"text": text}, "sft": {**MEASURED, "text": text}})
    assert [row[:2] for row in found] == [
        ("fine-tuned", "held-out text"),
        ("fine-tuned", "other text"),
        ("before training", "other text"),
    ]


def test_a_sentence_says_how_often_the_model_is_right_when_it_says_70_percent():
    assert calibration_in_words(RESULTS) == SENTENCE


def test_with_few_tokens_of_70_percent_the_sentence_is_about_all_tokens():
    example = {**CALIBRATION["near_70"], "tokens": 99}
    few = {"calibration": {**CALIBRATION, "near_70": example}}
    none = {"calibration": {**CALIBRATION, "near_70": None}}
    assert calibration_in_words({"pretrain": none}) == calibration_in_words({"pretrain": few})
    assert calibration_in_words({"pretrain": few}) == (
        "On held-out text, the most likely token of the base model has a probability of 31.2 % ± "
        "0.3 on average, and is right in 30.5 % ± 0.4 of the cases."
    )


def test_a_diverged_model_has_dashes():
    nothing = {name: None for name in CALIBRATION} | {"near_70": CALIBRATION["near_70"]}
    (row,) = calibration_rows({"sft": {"calibration": nothing}})
    assert row[2:] == ("–", "–", "–", "–")
    assert calibration_in_brief(nothing) == "– sure, – right (ECE –)"


def test_card_and_page_show_the_table_and_the_sentence():
    card, page = card_and_page(RESULTS)
    assert "| fine-tuned | held-out text | 31.2 % ± 0.3 | 30.5 % ± 0.4 | 2.3 % ± 0.2 |" in card
    assert '"held-out text", "31.2 % ± 0.3"' in page
    for text in (card, page):
        assert SENTENCE in text
    older = {"sft": {"loss": 3.0, "loss_sem": 0.1, "perplexity": 20.1, "bits_per_byte": 2.0}}
    assert (calibration_rows(older), calibration_in_words(older)) == ([], "")
    card = card_of(results=older)
    assert "3.000 ± 0.100" in card
    assert "ECE" not in card
