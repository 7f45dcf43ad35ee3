"""CORE and lm-evaluation-harness, where `test_result_tables.py` does not have their words."""

import pytest

from pipeline.report.benchmarks import ASKS, COLUMNS, SEED, core_blocks, core_in_brief
from pipeline.report.result_tables import result_blocks
from pipeline.report.results import Evaluated, result_of
from pipeline.state.head import Head, StageRecord
from pipeline.state.record_json import Damaged
from tests.pion.evaluation.core.test_measure_results import of_core
from tests.pipeline.report.test_result_tables import ASKED
from tests.support.jobs import tiny_job

CORE = of_core()
RESULTS = {"sft": {"core": CORE}}


def test_a_reader_who_knows_nothing_of_centring_can_read_the_table():
    found = dict(zip(COLUMNS, core_blocks(RESULTS, brief=False)[-1].rows[0]))
    task = CORE["tasks"][0]
    assert found["task, and what it asks"] == f"{task['label']}: {ASKS[task['label']]}"
    assert found["right"].startswith(f"{100 * task['accuracy']:.1f} % ± ")
    assert found["by guessing"] == f"{100 * task['baseline']:.1f} %"
    assert "from guessing (0) to all right (1)" in found


def test_only_next_to_core_it_is_said_how_much_a_seed_changes():
    assert core_blocks(RESULTS, brief=True)[-1] == SEED
    few = {"sft": {"core": {**CORE, "name": "mean of 3 tasks", "not_core": ["19 are missing"]}}}
    (words,) = core_blocks(few, brief=True)
    assert words.startswith("The fine-tuned model answers questions of other people's benchmarks: ")
    assert ": mean of 3 tasks 0." in words
    assert words.endswith("Not CORE: 19 are missing.")
    assert core_in_brief({**CORE, "value": None}) == "CORE not finite"


@pytest.mark.parametrize(
    "wrong",
    [{"form": "song"}, {"shots": -1}, {"version": []}, {"until": [7]}, {"cut_off": "half"}],
)
def test_a_record_that_says_it_in_another_way_is_damaged(wrong):
    result = {"lm_eval": {"gsm8k": {"asked": ASKED | wrong}}}
    head = Head(stages={"evaluate": StageRecord("d", 0.0, result=result)})
    with pytest.raises(Damaged, match=rf"result\.lm_eval\.gsm8k\.asked\.{next(iter(wrong))}"):
        result_of(Evaluated, head, "evaluate", "store/demo")


def test_texts_of_others_have_no_control_characters():
    hostile = ASKED | {"until": ["\x1b[31m`"], "version": "\x1b", "lm_eval": "\x1b"}
    results = {"lm_eval": {"gsm8k": {"asked": hostile}}}
    sentence, (_, ((_, version, stops, *_),), _), _ = result_blocks(
        tiny_job(), results, code="`{}`"
    )
    assert "\x1b" not in version + stops + sentence
    assert stops.count("`") == 2
