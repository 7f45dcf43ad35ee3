"""What is kept of lm-eval's results."""

import numpy as np
import pytest

from pion.evaluation.item_scores import unpack
from pipeline.stages.lm_eval_results import Counts, asked_of, drawn, items_of, metrics_of
from pipeline.state.record_json import count_values, finite_json

COUNTS = Counts(prompts=4, cropped=1, answers=2, cut_off=1, longest=256)
VERSION = "pipeline.stages.lm_eval_results.version"
DOC, TARGET = "a1" * 32, "b2" * 32


@pytest.fixture(autouse=True)
def version(monkeypatch):
    monkeypatch.setattr(VERSION, lambda package: "0.4.13")


def sample(values, filtered="none", doc=DOC):
    named = {"metrics": list(values), "filter": filtered}
    return {"doc_hash": doc, "target_hash": TARGET, **named, **values}


def found(samples, **changes):
    """Return what lm-eval's `simple_evaluate` gives for the task `sums`."""
    return {
        "samples": {"sums": samples},
        "configs": {"sums": {"generation_kwargs": {"until": ["Question:", "</s>"]}}},
        "n-samples": {"sums": {"original": 1319, "effective": 500}},
        "n-shot": {"sums": 5},
        "versions": {"sums": 3.0},
        **changes,
    }


def test_metrics_are_the_numbers_and_the_filter_is_named_where_there_is_one():
    result = {
        "name": "sums",
        "alias": "sums",
        "sample_len": 4,
        "acc,none": np.float64(0.5),
        "acc_stderr,none": "N/A",
        "exact_match,strict": 0.25,
    }
    assert metrics_of(result) == {"acc": 0.5, "exact_match,strict": 0.25}


def test_how_the_model_was_asked_is_kept():
    assert asked_of(found([]), "sums", "chat", COUNTS, drawn=True) == {
        "form": "chat",
        "shots": 5,
        "version": "3.0",
        "lm_eval": "0.4.13",
        "fewshot_seed": 1234,
        "questions": 500,
        "of": 1319,
        "sample_seed": 1234,
        "cropped": 0.25,
        "until": ["Question:", "</s>"],
        "max_gen_toks": 256,
        "cut_off": 0.5,
    }


def test_a_task_that_writes_nothing_has_no_length_of_answers():
    kept = asked_of(found([]), "sums", "text", Counts(prompts=8), drawn=False)
    assert kept.keys().isdisjoint({"until", "max_gen_toks", "cut_off", "sample_seed"})


def test_a_group_whose_tasks_have_different_examples_names_no_number():
    both = {
        "configs": {"a": {}, "b": {"generation_kwargs": {"until": "x" * 1000}}},
        "n-samples": {name: {"original": 10, "effective": 4} for name in "ab"},
        "n-shot": {"a": 5, "b": 0, "both": 5},
        "versions": {"a": 1, "b": 1},
    }
    kept = asked_of(found([], **both), "both", "chat", COUNTS, drawn=True)
    assert (kept["shots"], kept["version"], kept["questions"], kept["of"]) == (None, None, 8, 20)
    assert kept["until"] == ["x" * 60]


# ---------------------------------------------------------------- scores by question


def test_each_metric_and_filter_has_the_scores_of_all_questions_under_their_keys():
    samples = [
        sample({"exact_match": np.float64(1.0), "words": 3}, "strict"),
        sample({"exact_match": True, "words": 0.123456789}, "strict", doc="c3" * 32),
        sample({"exact_match": 0.0}, "flexible"),
    ]
    items = items_of(found(samples), "chat", 256)
    rule = (
        "lm-eval 0.4.13, sums version 3.0, chat, 5 shots (seed 1234), 500 of 1319 questions "
        "(seed 1234), answers of at most 256 tokens"
    )
    scores = {name: unpack(one).scores.tolist() for name, one in items.items()}
    assert scores == {
        "lm_eval.sums exact_match,strict": [1, 1],
        "lm_eval.sums words,strict": [3, 0.123456789],
        "lm_eval.sums exact_match,flexible": [0],
    }
    assert {one["key"]["rule"] for one in items.values()} == {rule}
    strict, words, flexible = (one["key"]["questions"] for one in items.values())
    assert strict == words != flexible


def test_the_form_the_length_the_examples_and_the_questions_are_part_of_the_rule(monkeypatch):
    def rule(form="chat", longest=256, **changes):
        (series,) = items_of(found([sample({"acc": 1})], **changes), form, longest).values()
        return series["key"]["rule"]

    rules = {
        rule(),
        rule("text"),
        rule(longest=128),
        rule(**{"n-shot": {"sums": 0}}),
        rule(versions={"sums": 2.0}),
        rule(**{"n-samples": {"sums": {"original": 1319, "effective": 200}}}),
    }
    monkeypatch.setattr(VERSION, lambda package: "0.4.14")
    assert len(rules | {rule()}) == 7


def test_what_is_no_number_of_a_question_is_left_out_and_what_is_not_finite_stays_so():
    samples = [sample({"word_perplexity": (-3.0, 4), "acc": float("nan")})]
    items = items_of(found(samples), "text", 0)
    assert list(items) == ["lm_eval.sums acc"]
    assert np.isnan(unpack(items["lm_eval.sums acc"]).scores).all()


def test_very_many_scores_fit_into_a_record():
    items = items_of(found([sample({"acc": 1})] * 20_000), "text", 0)
    assert count_values(finite_json(items).encode()) < 20


# ---------------------------------------------------------------- which questions a limit draws


def test_the_drawn_questions_never_change():
    # Finished runs were asked these. Another Python must not draw others.
    assert drawn(1319, 8) == [120, 203, 447, 640, 651, 704, 1097, 1209]


def test_a_smaller_sample_is_part_of_a_larger_one_and_in_order():
    small, large = drawn(1000, 50), drawn(1000, 200)
    assert set(small) < set(large)
    assert small == sorted(small)
    assert len(set(large)) == 200


@pytest.mark.parametrize("limit", [None, 40, 41, 10**9])
def test_all_are_asked_without_a_limit_or_with_a_large_one(limit):
    assert drawn(40, limit) is None
