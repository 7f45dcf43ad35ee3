"""Answers are nanochat's, except for the counted deviations, whatever the batches."""

import math

import numpy as np
import pytest
import torch

from pion.evaluation.core import scoring
from pion.evaluation.core.bundle import Item, Task
from pion.evaluation.core.rows import prompts_of
from pion.evaluation.core.scoring import NO_CHOICE, answer_task
from pion.evaluation.held_out import Scorer
from tests.pion.evaluation.core.frozen import CASES, nanochat_choices
from tests.support.core_bundle import TASKS, item_of, items
from tests.support.known_models import OnSmallGpu, constant, decoder
from tests.support.plain_core import plain_scores
from tests.support.prefix_model import PrefixModel
from tests.support.tokenizer_kinds import tokenizer_of


def answers(model, tokenizer, task, micro_batch=4):
    of = model.decoder() if isinstance(model, PrefixModel) else model
    scorer = Scorer(of, tokenizer.vocab_size, micro_batch)
    return answer_task(scorer, tokenizer, task, len(task.items))


def choices(found):
    return [one.choice for one in found]


def task_of(*of, task_type="multiple_choice", delimiter=" "):
    return Task("some", task_type, 0, delimiter, 0.0, of, "digest")


# Two of the four cases of each tokenizer by default.
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=pytest.mark.soak if case.seed in (1, 2) else ())
        for case in CASES
    ],
)
def test_choices_are_nanochats_on_all_items_without_a_counted_deviation(case, made_up):
    tokenizer = tokenizer_of(case.kind)
    model = PrefixModel.of(tokenizer, case.context, case.seed)
    frozen = nanochat_choices(case)
    compared = cropped = 0
    for task in made_up.tasks:
        for one, theirs in zip(answers(model, tokenizer, task), frozen[task.label], strict=True):
            cropped += one.asked.cropped > 0
            if not (one.asked.odd or one.tied):
                assert one.choice == theirs
                compared += 1
    assert compared >= 33
    assert (cropped > 20) == (case.context == 72)


def test_some_frozen_answers_of_each_type_are_right(made_up):
    """Else, a scorer that calls every answer wrong would pass."""
    for task in made_up.tasks:
        frozen = [nanochat_choices(case)[task.label] for case in CASES]
        right = [
            theirs == item.gold
            for own in frozen
            for theirs, item in zip(own, task.items, strict=True)
        ]
        assert 0.1 < np.mean(right) < 0.6


@pytest.mark.parametrize("kind", ["gpt2", "qwen", "llama3"])
@pytest.mark.parametrize("context", [512, 72])
def test_a_real_decoder_answers_as_the_plain_scorer_does(kind, context, made_up):
    tokenizer = tokenizer_of(kind)
    model = decoder(tokenizer.vocab_size, context, seed=5)
    for raw, task in zip(TASKS, made_up.tasks, strict=True):
        plain = plain_scores(model, tokenizer, raw, items()[raw["dataset_uri"]])
        for one, own in zip(answers(model, tokenizer, task), plain, strict=True):
            if task.task_type == "language_modeling":
                assert one.credit == 1 - own[0]
            else:
                assert one.nats == pytest.approx(own, abs=1e-4)
                best = one.choice if one.choice != NO_CHOICE else 0
                assert best == int(np.argmin(own))


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
def test_batch_sizes_and_running_out_of_memory_do_not_change_a_choice(kind, made_up, monkeypatch):
    tokenizer = tokenizer_of(kind)
    model = decoder(tokenizer.vocab_size, 300, seed=1)
    for task in made_up.tasks:
        alone = choices(answers(model, tokenizer, task, 1))
        assert choices(answers(model, tokenizer, task, 7)) == alone
        assert choices(answers(model, tokenizer, task, 64)) == alone
        small = OnSmallGpu(model, limit=3)
        assert choices(answers(small, tokenizer, task, 64)) == alone
        assert max(small.seen) > 3
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "ITEMS_AT_ONCE", 5)
            assert choices(answers(model, tokenizer, task, 64)) == alone


def test_choices_of_one_token_cost_one_row(made_up):
    tokenizer = tokenizer_of("gpt2")
    letters = item_of(("Which one? A. here B. there",), ("A", "B"), 0)
    phrases = item_of(("Which one?",), ("A place", "B place"), 0)
    model = PrefixModel.of(tokenizer, 64)
    answers(model, tokenizer, task_of(letters, phrases))
    assert sum(model.rows_seen) == 3  # their nats are the plain scorer's: see above


def test_a_choice_that_another_begins_with_is_scored_from_the_end_of_the_context():
    """nanochat's code takes the mean of nothing there, and calls the first choice the best."""
    tokenizer = tokenizer_of("gpt2")
    item = item_of(("Where is it?",), ("here", "here it is"), 0)
    swapped = Item(item.options[::-1], 1)
    for seed in range(4):
        model = PrefixModel.of(tokenizer, 64, seed)
        first, second = answers(model, tokenizer, task_of(item, swapped))
        assert first.asked.odd
        assert all(map(math.isfinite, first.nats))
        assert first.nats == second.nats[::-1]
        assert first.credit == second.credit


def test_equal_choices_and_all_ties_share_the_credit():
    tokenizer = tokenizer_of("gpt2")
    knows_nothing = constant([0.0] * tokenizer.vocab_size, 64)
    item = item_of(("Is it so?",), ("yes it is", "no, never", "no"), 1)
    equal = item_of(("Is it so?",), ("yes", "yes"), 0)
    one, two = answers(knows_nothing, tokenizer, task_of(item, equal))
    assert (one.credit, one.choice, one.tied) == (1 / 3, NO_CHOICE, True)
    assert (two.credit, two.asked.odd) == (0.5, True)
    assert len(two.asked.rows) == 1


def test_a_token_across_the_border_belongs_to_the_answer_and_is_counted():
    """nanochat's code ends with an AssertionError there."""
    tokenizer = tokenizer_of("gpt2")
    wanted = tokenizer.encode(" list")
    assert len(wanted) == 1
    knows = constant([9.0 if i == wanted[0] else 0.0 for i in range(tokenizer.vocab_size)], 64)
    task = task_of(
        item_of(("Here is a li",), ("st",), 0), task_type="language_modeling", delimiter=""
    )
    (one,) = answers(knows, tokenizer, task)
    assert one.asked.joined
    assert one.credit == 1
    apart = task_of(item_of(("Here is a",), ("list",), 0), task_type="language_modeling")
    assert not answers(knows, tokenizer, apart)[0].asked.joined


@pytest.mark.parametrize("task_type", ["multiple_choice", "language_modeling", "schema"])
def test_an_answer_longer_than_the_context_is_wrong_and_counted(task_type):
    tokenizer = tokenizer_of("gpt2")
    long = "the list of items " * 8
    item = {
        "multiple_choice": item_of(("It is",), (f"a {long}", f"b {long}"), 0),
        "language_modeling": item_of(("It is",), (long,), 0),
        "schema": item_of(("It is", "That is"), (long,), 0),
    }[task_type]
    model = PrefixModel.of(tokenizer, 16)
    (one,) = answers(model, tokenizer, task_of(item, task_type=task_type))
    assert one.asked.unscored
    assert one.asked.cropped == len(item.options)
    assert (one.credit, one.choice, one.finite) == (0, NO_CHOICE, True)
    assert model.rows_seen == []


def test_an_answer_that_just_fits_is_scored():
    """The token before the answer must be there too, for it predicts the answer's first token."""
    tokenizer = tokenizer_of("gpt2")
    task = task_of(item_of(("It is",), ("list key tool",), 0), task_type="language_modeling")
    length = len(tokenizer.encode(" list key tool"))
    fits = answers(PrefixModel.of(tokenizer, length + 1), tokenizer, task)
    short = answers(PrefixModel.of(tokenizer, length), tokenizer, task)
    assert (fits[0].asked.unscored, short[0].asked.unscored) == (False, True)


def test_an_item_without_any_token_to_score_is_wrong_and_counted():
    tokenizer = tokenizer_of("gpt2")
    empty = task_of(item_of(("",), ("", ""), 0), delimiter="")
    (one,) = answers(PrefixModel.of(tokenizer, 16), tokenizer, empty)
    assert (one.asked.unscored, one.credit) == (True, 0)


@pytest.mark.parametrize("label", ["made_up_choice", "made_up_schema", "made_up_words"])
def test_numbers_that_are_not_finite_are_never_an_answer(label, made_up):
    tokenizer = tokenizer_of("gpt2")
    model = decoder(tokenizer.vocab_size, 512)
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    task = next(task for task in made_up.tasks if task.label == label)
    for one in answers(model, tokenizer, task):
        assert (one.finite, one.choice, one.credit) == (False, NO_CHOICE, 0)


def test_a_long_context_does_not_make_large_batches(made_up):
    tokenizer = tokenizer_of("gpt2")
    model = PrefixModel.of(tokenizer, 131_072)
    answers(model, tokenizer, made_up.tasks[0], micro_batch=1)
    longest = max(len(tokenizer.encode(text)) for text in prompts_of(made_up.tasks[0], 0)[0])
    assert 1 < max(model.rows_seen) < 4 * scoring.USUAL_ROW / longest
