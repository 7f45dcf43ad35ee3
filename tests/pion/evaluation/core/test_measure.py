"""CORE of a whole bundle: a subset is a sample of the full measurement."""

import json
import random

import pytest

from pion.evaluation.core import scoring
from pion.evaluation.core.bundle import Task, read_bundle
from pion.evaluation.core.measure import core_result, measure_task, too_short
from pion.evaluation.held_out import Scorer
from tests.support.core_bundle import TASKS, write_bundle
from tests.support.prefix_model import PrefixModel
from tests.support.tokenizer_kinds import tokenizer_of


def measure(bundle, limit):
    tokenizer = tokenizer_of("gpt2")
    scorer = Scorer(PrefixModel.of(tokenizer, 512).decoder(), tokenizer.vocab_size, 4)
    tasks = [measure_task(scorer, tokenizer, task, limit) for task in bundle.tasks]
    return core_result(bundle, tasks, limit=limit, context=512)


def test_fewer_items_are_the_first_items_of_all(made_up):
    whole, part = measure(made_up, None), measure(made_up, 5)
    assert measure(made_up, 500).tasks == whole.tasks
    # nanochat's code fails with fewer items than examples, which it draws from these items.
    assert [task.items for task in measure(made_up, 1).tasks] == [1, 1, 1]
    assert (whole.name, whole.bundle_digest) == ("mean of 3 tasks", made_up.digest)
    assert whole.not_core[0] == "22 of CORE's 22 tasks are missing"
    json.dumps([task.credits for task in whole.tasks])
    for of_all, of_few in zip(whole.tasks, part.tasks, strict=True):
        assert (of_all.items, of_few.items, of_few.of_items) == (12, 5, 12)
        assert of_few.credits == of_all.credits[:5]
        assert of_few.choices == of_all.choices[:5]


def test_progress_counts_the_items_of_a_task(made_up, monkeypatch):
    monkeypatch.setattr(scoring, "ITEMS_AT_ONCE", 5)
    tokenizer, task, seen = tokenizer_of("gpt2"), made_up.tasks[0], list[tuple[Task, int, int]]()
    scorer = Scorer(PrefixModel.of(tokenizer, 512).decoder(), tokenizer.vocab_size, 4)
    measure_task(scorer, tokenizer, task, 11, lambda *told: seen.append(told))
    assert seen == [(task, done, 11) for done in (5, 10, 11)]  # of the 12


@pytest.fixture(scope="module")
def balanced(tmp_path_factory):
    """A made-up bundle of 400 items a task, with each place of the right answer equally often."""
    rng = random.Random(0)

    def word():
        return "".join(rng.choices("abcdefgh", k=5))

    lines = [
        [
            {"query": word(), "choices": [f"{word()} {word()}" for _ in range(4)], "gold": n % 4}
            for n in range(400)
        ],
        [
            {"context_options": [word(), word()], "continuation": word(), "gold": n % 2}
            for n in range(400)
        ],
        [{"context": word(), "continuation": word()} for _ in range(400)],
    ]
    named = {task["dataset_uri"]: own for task, own in zip(TASKS, lines, strict=True)}
    return read_bundle(write_bundle(tmp_path_factory.mktemp("balanced"), lines=named))


def test_a_model_that_knows_nothing_has_a_core_of_nothing_and_a_sample_is_within_its_error(
    balanced,
):
    whole, part = measure(balanced, None), measure(balanced, 100)
    assert abs(whole.value) < 2 * whole.sem < 0.06
    for task in whole.tasks:
        assert task.commonest is None or task.commonest < 0.35
    assert abs(part.value - whole.value) < 2 * part.sem
    assert 1.5 < part.sem / whole.sem < 2.5


def test_a_context_too_short_for_the_questions_is_told():
    assert "context has 255 tokens. CORE needs 256 or more" in str(too_short(255))
    assert too_short(256) is None
