"""Two runs are compared by the questions that both answered, and by nothing else."""

import json
import math

import numpy as np
import pytest

from pion.evaluation.item_scores import ItemScores, item_scores, pack
from pipeline.report.paired import Compared, compare, read_measures
from pipeline.state.record_json import Damaged
from pipeline.state.run_state import part_path
from pipeline.state.stores import FileStore
from tests.support.rented_run import RentedRun

RANDOM = np.random.default_rng(0)
N = 1500


def task(scores, questions="q", baseline=0.25, **form):
    key = {"rule": "core/nanochat-1", "questions": questions, "items": len(scores), "shots": 0}
    return key | {"baseline": baseline} | form, item_scores(scores)


def answers(right):
    return (RANDOM.random(N) < right).astype(float)


def changed(before, share, right):
    """Return other answers to `share` of the questions."""
    return np.where(RANDOM.random(N) < share, answers(right), before)


def by_name(rows):
    return {row.name: row for row in rows}


def test_the_error_of_core_is_that_of_a_bootstrap_over_items():
    """hellaswag is asked twice, so its answers move together; the other task is on its own."""
    once = [answers(0.5), answers(0.3)]
    twice = [once[0], changed(once[0], 0.3, 0.5)]  # before: with and without examples
    after = [changed(twice[0], 0.3, 0.6)] * 2
    before = {
        "core.a": task(twice[0]),
        "core.b": task(twice[1]),
        "core.c": task(once[1], "other", 0.0),
    }
    then = {
        "core.a": task(after[0]),
        "core.b": task(after[1]),
        "core.c": task(changed(once[1], 0.2, 0.4), "other", 0.0),
    }
    core = by_name(compare(before, then))["core"]
    moved = {name: then[name][1].scores - before[name][1].scores for name in before}
    both = (moved["core.a"] + moved["core.b"]) / 0.75
    means = [
        RANDOM.multinomial(N, np.full(N, 1 / N), 2000) @ each / N
        for each in (both, moved["core.c"])
    ]
    assert core.change == pytest.approx((both.mean() + moved["core.c"].mean()) / 3)
    assert core.sem == pytest.approx((sum(means) / 3).std(), rel=0.05)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"questions": "others"}, "other questions"),
        ({"rule": "core/2"}, "another rule"),
        ({"shots": 5}, "another number of examples"),
    ],
)
def test_other_questions_are_not_compared_and_the_words_say_why(form, words):
    before, after = task(answers(0.5)), task(answers(0.5), **form)
    rows = by_name(compare({"core.a": before}, {"core.a": after}))
    assert (rows["core.a"].change, rows["core.a"].why_not) == (None, words)
    assert rows["core"].change is None
    assert rows["core"].why_not == f"1 of 1 tasks can't be compared, such as core.a: {words}"


def test_a_measure_of_one_run_alone_is_shown():
    rows = compare({"packs.a": task(np.ones(4))}, {})
    assert rows == [Compared("packs.a", (1.0, None), why_not="measured of one alone")]


def test_documents_of_other_data_are_not_compared():
    bits = ItemScores(np.array([10.0, 30.0]), sizes=np.array([10, 20]))
    sides = [{"bits_per_byte": ({"data": data, "rows": 8}, bits)} for data in ("d", "e")]
    (row,) = compare(*sides)
    assert (row.values[0], row.change, row.why_not) == (pytest.approx(40 / 30), None, "other data")


def test_of_many_tasks_only_those_are_real_that_chance_does_not_give():
    """One of twenty tasks without any difference has |z| > 1.96 on average: none is called real."""
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state
    before = {f"core.{n}": task(answers(0.5), str(n)) for n in range(20)}
    after = {
        name: task(changed(measure[1].scores, 0.3, 0.5), name.removeprefix("core."))
        for name, measure in before.items()
    }
    after["core.7"] = task(changed(before["core.7"][1].scores, 0.3, 0.8), "7")
    rows = by_name(compare(before, after))
    assert [name for name, row in rows.items() if row.real] == ["core.7"]
    assert (
        max(abs(row.z or 0) for name, row in rows.items() if name not in ("core", "core.7")) > 1.9
    )


def test_scores_that_are_not_numbers_are_not_compared():
    broken = task(np.array([1.0, math.nan]))
    (core, one) = compare({"core.a": task(np.ones(2))}, {"core.a": broken})
    assert (core.change, one.change, one.why_not) == (None, None, "not finite")


# ---------------------------------------------------------------- from stores

MEASURED = {
    "pretrain.bits_per_byte": (
        {"data": "d", "rows": 8},
        ItemScores(np.array([10.0, 30.0, 21.0]), sizes=np.array([10, 20, 20])),
    ),
    "pretrain.core.piqa": task(np.array([1, 0, 1, 1.0])),
    "sft.core.piqa": task(np.zeros(4)),
}


def trained(store, name):
    rented = RentedRun(FileStore(store), name)
    rented.rent()
    rented.train(10)
    rented.save()
    return rented


def evaluated(store, name, measures=MEASURED):
    """Return a finished run whose evaluation has kept `measures`."""
    rented = trained(store, name)
    rented.claim.finish_stage("evaluate", "e1", {})
    run = rented.state
    packed = {of: {"key": form, **pack(scores)} for of, (form, scores) in measures.items()}
    run.store.write(run.key(part_path("e1", "by_item")), json.dumps(packed).encode())
    return run


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no cell is broken into lines


@pytest.mark.usefixtures("wide")
def test_status_compares_what_was_measured_of_the_final_models(here, pion):
    better = MEASURED | {"pretrain.core.piqa": task(np.array([1, 1, 1, 1.0]))}
    evaluated(here / "runs", "a")
    evaluated(here / "runs", "b", better)
    code, out, _ = pion("status", "a", "b", "--compare")
    lines = {line.strip().split("  ")[0]: line for line in out.splitlines() if line.strip()}
    assert code == 0
    assert "final model; in parentheses less a" in out
    assert lines["bits_per_byte"].split()[1:] == ["1.2200", "1.2200", "(+0.0000)"]
    assert "0.7500" in lines["core.piqa"]
    assert "1.0000 (+0.2500 ± 0.2500, z = +1.0, within chance)" in lines["core.piqa"]
    assert "sft" not in out
    found = json.loads(pion("status", "a", "b", "--compare", "--json")[1])["measured"]
    assert [(one["run"], one["less"]) for one in found] == [("b", "a")]
    assert found[0]["measures"][0]["change"] == 0.0


@pytest.mark.usefixtures("wide")
def test_a_run_that_kept_no_answers_is_compared_by_the_rest(here, pion):
    evaluated(here / "runs", "a")
    trained(here / "runs", "b")
    code, out, _ = pion("status", "a", "b", "--compare")
    assert code == 0
    assert "– (not compared: measured of one alone)" in out
    assert "pretrain, training" in out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "JSON object"),
        ('{"pretrain.core.piqa": 3}', "has no form"),
        ('{"pretrain.core.piqa": {"key": {}, "n": 8, "right": "!"}}', "right can't be read"),
    ],
)
def test_damaged_answers_are_named(tmp_path, text, why):
    run = evaluated(tmp_path, "a")
    run.store.write(run.key(part_path("e1", "by_item")), text.encode())
    head = run.read()
    with pytest.raises(Damaged, match="by_item.json is damaged: .*" + why):
        read_measures(run, head, "pretrain")
