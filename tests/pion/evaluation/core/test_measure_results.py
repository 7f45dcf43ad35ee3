"""Accuracies, their centring and their errors."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from pion.evaluation.core.bundle import Bundle, Task
from pion.evaluation.core.measure import CORRECTED, core_result, task_result
from pion.evaluation.core.rows import ItemRows
from pion.evaluation.core.scoring import NO_CHOICE, Answer
from tests.support.core_bundle import item_of


def task_of(label="some", items=100, baseline=0.25, data=""):
    item = item_of(("Q",), ("a", "b", "c", "d"), 0)
    return Task(label, "multiple_choice", 0, " ", baseline, (item,) * items, data or label)


def answered(credits, *, finite=True, cropped=0, **counts):
    flags = {"unscored": False, "odd": False, "joined": False} | counts
    return [
        Answer(
            ItemRows((), (), cropped, **flags),
            (),
            NO_CHOICE if credit == 0.5 else int(1 - credit),
            credit,
            finite=finite,
        )
        for credit in credits
    ]


def record_of(task, answers):
    return task_result(task, answers).record


def scored(right, of, label="some", baseline=0.25):
    return task_result(task_of(label, of, baseline), answered([1.0] * right + [0.0] * (of - right)))


def some(*args):
    return scored(*args).record


def of_core():
    """Three tasks of CORE, half of which is right. DCLM corrected the baselines of two of them."""
    results = [scored(50, 100, label) for label in ("piqa", "commonsense_qa", "agi_eval_lsat_ar")]
    return core_result(Bundle(Path("bundle"), (), "digest"), results, limit=None, context=2048)


def test_accuracy_is_centred_on_guessing():
    found = some(70, 100)
    assert (found["accuracy"], found["baseline"]) == (0.7, 0.25)
    assert found["centred"] == pytest.approx(0.45 / 0.75)
    assert found["sem"] == pytest.approx(math.sqrt(0.7 * 0.3 / 100))
    assert found["centred_sem"] == pytest.approx(found["sem"] / 0.75)
    assert some(10, 100)["centred"] < 0


def test_what_is_odd_is_counted():
    task = task_of(items=4)
    found, credits = task_result(
        task,
        [
            *answered([1.0], odd=True),
            *answered([0.0], unscored=True, cropped=4),
            *answered([0.0], joined=True, cropped=3),
            *answered([0.5]),
        ],
    )
    assert (found["odd_items"], found["unscored"], found["joined_tokens"]) == (1, 1, 1)
    assert found["cropped"] == 7 / 16
    assert credits.tolist() == [1.0, 0.0, 0.0, 0.5]


def test_the_commonest_answer_shows_a_model_that_does_not_read():
    found = some(80, 100)
    assert (found["commonest"], found["commonest_place"]) == (0.8, 0)
    assert some(20, 100)["commonest_place"] == 1
    assert record_of(task_of(items=2), answered([0.5, 0.5]))["commonest"] is None
    schema = dataclasses.replace(task_of(items=2), task_type="schema")
    assert record_of(schema, answered([1.0, 0.0]))["commonest"] is None


def test_one_item_that_is_not_finite_makes_its_task_not_finite():
    broken = task_result(task_of(items=10), answered([1.0] * 9) + answered([0.0], finite=False))
    found = broken.record
    assert found["not_finite"] == 1
    assert all(
        map(math.isnan, (found["accuracy"], found["sem"], found["centred"], found["centred_v2"]))
    )
    bundle = Bundle(Path("b"), (task_of(items=10), task_of("other", 10)), "d")
    result = core_result(bundle, [broken, scored(5, 10, "other")], limit=None, context=512)
    assert math.isnan(result["value"])
    assert math.isnan(result["sem"])


@pytest.mark.parametrize("label", ["squad", "coqa"])
def test_questions_about_one_passage_are_one_observation(label):
    """In the worst case, all answers about a passage are equal."""
    rng = np.random.default_rng(0)
    passages = [f"Story: {n} {'word ' * 30}" for n in range(50)]
    items = tuple(
        item_of((f"{text} Question {n}?",), ("a",), 0) for text in passages for n in range(8)
    )
    task = dataclasses.replace(task_of(label, baseline=0), items=items)
    right = [float(one) for one in rng.random(50) < 0.4 for _ in range(8)]
    found = record_of(task, answered(right))
    assert found["passages"] == 50
    assert found["sem"] == pytest.approx(
        math.sqrt(found["accuracy"] * (1 - found["accuracy"]) / 49), rel=1e-6
    )
    apart = dataclasses.replace(task, label="lambada_openai")
    assert record_of(apart, answered(right))["sem"] < found["sem"] / 2
    assert record_of(apart, answered(right))["passages"] is None
    few = record_of(task, answered(right[:8]))
    assert (few["passages"], few["accuracy"] in (0, 1)) == (1, True)
    assert few["sem"] == 0.25


def test_the_published_numbers_whichever_baseline_the_bundle_has():
    """nanochat's log of a d20: these accuracies were centred on v1."""
    for label, accuracy, centred in (
        ("bigbench_language_identification", 0.2523, 0.1774),
        ("commonsense_qa", 0.2696, 0.0870),
        ("agi_eval_lsat_ar", 0.2850, 0.1063),
    ):
        found = some(round(10_000 * accuracy), 10_000, label)
        assert found["centred"] == pytest.approx(centred, abs=1e-4)
        assert found["centred_v2"] < found["centred"]


def test_core_is_the_mean_of_the_centred_tasks_by_both_baselines():
    result = of_core()
    assert (result["name"], result["not_core"], result["rule"]) == ("CORE", [], "core/nanochat-1")
    for version, value in enumerate((result["value"], result["value_v2"])):
        baselines = [0.25, *(CORRECTED[one["label"]][version] for one in result["tasks"][1:])]
        assert value == pytest.approx(np.mean([(0.5 - one) / (1 - one) for one in baselines]))
    sems = [one["centred_sem"] for one in result["tasks"]]
    assert result["sem"] == pytest.approx(math.sqrt(math.fsum(sem**2 for sem in sems)) / 3)


def test_two_tasks_with_the_same_items_share_their_luck():
    credits = [float(one) for one in np.random.default_rng(1).random(400) < 0.5]
    one, again = (task_of(label, 400, 0.25, "same file") for label in ("with", "without"))
    alone = task_of("another", 400, 0.25)
    same = [task_result(task, answered(credits)) for task in (one, again)]
    apart = [task_result(task, answered(credits)) for task in (one, alone)]
    bundle = Bundle(Path("b"), (one, again), "d")
    shared, separate = (
        core_result(bundle, tasks, limit=None, context=512) for tasks in (same, apart)
    )
    assert shared["sem"] == pytest.approx(same[0].record["centred_sem"], rel=0.01)
    assert separate["sem"] == pytest.approx(same[0].record["centred_sem"] / math.sqrt(2))


def test_the_error_is_what_other_items_would_change():
    """Over 400 draws of the items, the means spread as the error says."""
    rng = np.random.default_rng(2)
    tasks = [task_of("a", 50, 0.25), task_of("b", 200, 0.5)]
    bundle = Bundle(Path("b"), tuple(tasks), "d")
    found = []
    for _ in range(400):
        drawn = [
            answered([float(x) for x in rng.random(len(task.items)) < share])
            for task, share in zip(tasks, (0.4, 0.7), strict=True)
        ]
        results = [task_result(task, own) for task, own in zip(tasks, drawn, strict=True)]
        found.append(core_result(bundle, results, limit=None, context=512))
    spread = np.std([one["value"] for one in found])
    assert np.mean([one["sem"] for one in found]) == pytest.approx(spread, rel=0.1)


def test_many_cropped_rows_are_named_next_to_the_number():
    tasks = (task_of("a", 10), task_of("b", 10))
    one = task_result(tasks[0], answered([1.0] * 10, cropped=1))
    two = task_result(tasks[1], answered([1.0] * 10))
    result = core_result(Bundle(Path("b"), tasks, "d"), [one, two], limit=None, context=1024)
    assert one.record["cropped"] == 0.25
    assert (result["cropped_tasks"], result["context"]) == (["a"], 1024)
