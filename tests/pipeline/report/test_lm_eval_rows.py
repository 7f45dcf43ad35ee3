"""Results of lm-evaluation-harness as rows of text."""

import pytest

from pipeline.report.lm_eval_rows import ASKED_COLUMNS, asked_in_words, asked_rows, lm_eval_rows
from pipeline.report.results import Evaluated, result_of
from pipeline.state.head import Head, StageRecord
from pipeline.state.record_json import Damaged

ASKED = {
    "form": "chat",
    "shots": 5,
    "version": "3.0",
    "lm_eval": "0.4.13",
    "fewshot_seed": 1234,
    "questions": 500,
    "of": 1319,
    "sample_seed": 1234,
    "cropped": 0.0,
    "until": ["Question:", "\n\n", "</s>"],
    "max_gen_toks": 1024,
    "cut_off": 0.124,
}


def results(asked, **metrics):
    return {"lm_eval": {"gsm8k": {**metrics, "asked": asked}}}


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (ASKED, "gsm8k (chat, 5 turns)"),
        (ASKED | {"shots": 1}, "gsm8k (chat, 1 turn)"),
        (ASKED | {"shots": 0}, "gsm8k (chat)"),
        (ASKED | {"shots": None}, "gsm8k (chat)"),
        (ASKED | {"form": "text"}, "gsm8k (text, 5 shots)"),
        (ASKED | {"form": "text", "shots": 0}, "gsm8k (text)"),
        ({}, "gsm8k"),
    ],
)
def test_a_row_names_the_form_and_the_number_of_examples(asked, shown):
    measured = {"exact_match,strict": 0.02, "exact_match_stderr,strict": 0.004}
    (row,) = lm_eval_rows(results(asked, **measured))
    assert row == (shown, "exact_match,strict", "0.020 ± 0.004")


def test_results_of_before_and_skipped_tasks_are_shown_as_ever():
    old = {"lm_eval": {"piqa": {"acc,none": 0.5}, "ifeval": {"skipped": "no network"}}}
    assert lm_eval_rows(old) == [("piqa", "acc", "0.500"), ("ifeval", "skipped", "no network")]
    assert asked_rows(old) == []


def test_how_a_task_was_asked_has_a_row():
    (row,) = asked_rows(results(ASKED), code="`{}`")
    assert dict(zip(ASKED_COLUMNS, row, strict=True)) == {
        "task": "gsm8k",
        "version": "3.0",
        "stop texts": '`"Question:"`, `"\\n\\n"`, `"</s>"`',
        "questions": "500 of 1,319",
        "longest answer": "1,024",
        "cut off": "12.4 %",
        "cropped": "0.0 %",
    }
    words = asked_in_words(results(ASKED))
    assert words.startswith("lm-evaluation-harness 0.4.13 asked as follows.")
    assert "seed 1234" in words


def test_a_task_that_writes_no_answers_has_dashes_and_all_questions_are_one_number():
    scored = {name: ASKED[name] for name in ("form", "shots", "version", "lm_eval")}
    (row,) = asked_rows(results(scored | {"questions": 40, "of": 40}))
    assert row == ("gsm8k", "3.0", "–", "40", "–", "–", "–")


@pytest.mark.parametrize(
    "wrong",
    [{"form": "song"}, {"shots": -1}, {"version": []}, {"until": [7]}, {"cut_off": "half"}],
)
def test_a_record_that_says_it_in_another_way_is_damaged(wrong):
    head = Head(stages={"evaluate": StageRecord("d", 0.0, result=results(ASKED | wrong))})
    with pytest.raises(Damaged, match=rf"result\.lm_eval\.gsm8k\.asked\.{next(iter(wrong))}"):
        result_of(Evaluated, head, "evaluate", "store/demo")


def test_texts_of_others_have_no_control_characters():
    hostile = ASKED | {"until": ["\x1b[31m`"], "version": "\x1b", "lm_eval": "\x1b"}
    ((_, version, stops, *_),) = asked_rows(results(hostile), code="`{}`")
    assert "\x1b" not in version + stops + asked_in_words(results(hostile))
    assert stops.count("`") == 2
