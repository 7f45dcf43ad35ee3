"""CORE in card, report and page: what each task asks, and what the number means."""

import dataclasses

from pipeline.report.core import ASKS, COLUMNS, SEED, core_blocks, core_in_brief, core_in_words
from tests.pion.evaluation.core.test_measure_results import of_core

CORE = dataclasses.asdict(of_core())
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
