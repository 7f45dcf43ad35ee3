"""CORE and lm-evaluation-harness in card, report and page."""

import pytest

from pipeline.report.benchmarks import (
    ASKED_COLUMNS,
    ASKS,
    COLUMNS,
    SEED,
    asked_in_words,
    asked_rows,
    core_blocks,
    core_in_brief,
    core_in_words,
    lm_eval_rows,
)
from pipeline.report.results import Evaluated, result_of
from pipeline.state.head import Head, StageRecord
from pipeline.state.record_json import Damaged
from tests.pion.evaluation.core.test_measure_results import of_core

CORE = of_core()
RESULTS = {"sft": {"core": CORE}}


def changed(task, **values):
    tasks = [{**one, **values} if n == task else one for n, one in enumerate(CORE["tasks"])]
    return {"sft": {"core": {**CORE, "tasks": tasks}}}


def row(results, task=0):
    table = core_blocks(results, brief=False)[-1]
    return list(table.rows[task])


def test_a_reader_who_knows_nothing_of_centring_can_read_the_table():
    found = dict(zip(COLUMNS, row(RESULTS)))
    task = CORE["tasks"][0]
    assert found["task, and what it asks"] == f"{task['label']}: {ASKS[task['label']]}"
    assert found["right"].startswith(f"{100 * task['accuracy']:.1f} % ± ")
    assert found["by guessing"] == f"{100 * task['baseline']:.1f} %"
    assert "from guessing (0) to all right (1)" in found


def test_an_accuracy_that_guessing_gives_is_at_chance():
    assert "at chance" not in row(changed(0, accuracy=0.9, sem=0.01))[-1]
    assert row(changed(0, accuracy=0.26, baseline=0.25, sem=0.01))[-1].startswith("at chance")


def test_a_mean_that_guessing_gives_is_at_chance():
    assert "At chance" not in core_in_words(CORE)
    assert "At chance: it can't be told" in core_in_words({**CORE, "value": 0.01, "sem": 0.006})


def test_logits_that_are_not_numbers_are_no_accuracy():
    broken = changed(0, not_finite=3, accuracy=None, sem=None, centred=None, centred_sem=None)
    assert row(broken)[1:] == ["–", "–", "–", "the model's logits are not numbers"]
    assert core_in_brief({**CORE, "value": None}) == "CORE not finite"


def test_only_next_to_core_it_is_said_how_much_a_seed_changes():
    assert core_blocks(RESULTS, brief=True)[-1] == SEED
    few = {"sft": {"core": {**CORE, "name": "mean of 3 tasks", "not_core": ["19 are missing"]}}}
    (words,) = core_blocks(few, brief=True)
    assert words.startswith("The fine-tuned model answers questions of other people's benchmarks: ")
    assert ": mean of 3 tasks 0." in words
    assert words.endswith("Not CORE: 19 are missing.")


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
