"""CORE of a whole bundle: a subset is a sample of the full measurement."""

import json

from pion.evaluation.core import scoring
from pion.evaluation.core.bundle import Task
from pion.evaluation.core.measure import core_result, measure_task, too_short
from pion.evaluation.held_out import Scorer
from tests.support.prefix_model import PrefixModel
from tests.support.tokenizer_kinds import tokenizer_of


def measure(bundle, limit):
    tokenizer = tokenizer_of("gpt2")
    scorer = Scorer(PrefixModel.of(tokenizer, 512).decoder(), tokenizer.vocab_size, 4)
    tasks = [measure_task(scorer, tokenizer, task, limit) for task in bundle.tasks]
    return core_result(bundle, tasks, limit=limit, context=512), [one.credits for one in tasks]


def test_fewer_items_are_the_first_items_of_all(made_up):
    (whole, all_credits), (part, few_credits) = measure(made_up, None), measure(made_up, 5)
    assert measure(made_up, 500)[0]["tasks"] == whole["tasks"]
    # nanochat's code fails with fewer items than examples, which it draws from these items.
    assert [task["items"] for task in measure(made_up, 1)[0]["tasks"]] == [1, 1, 1]
    assert whole["bundle_digest"] == made_up.digest
    json.dumps(whole)
    for of_all, of_few in zip(whole["tasks"], part["tasks"], strict=True):
        assert (of_all["items"], of_few["items"], of_few["of_items"]) == (12, 5, 12)
    for of_all, of_few in zip(all_credits, few_credits, strict=True):
        assert of_few.tolist() == of_all[:5].tolist()


def test_progress_counts_the_items_of_a_task(made_up, monkeypatch):
    monkeypatch.setattr(scoring, "ITEMS_AT_ONCE", 5)
    tokenizer, task, seen = tokenizer_of("gpt2"), made_up.tasks[0], list[tuple[Task, int, int]]()
    scorer = Scorer(PrefixModel.of(tokenizer, 512).decoder(), tokenizer.vocab_size, 4)
    measure_task(scorer, tokenizer, task, 11, lambda *told: seen.append(told))
    assert seen == [(task, done, 11) for done in (5, 10, 11)]  # of the 12


def test_a_context_too_short_for_the_questions_is_told():
    assert "context has 255 tokens. CORE needs 256 or more" in str(too_short(255))
    assert too_short(256) is None
