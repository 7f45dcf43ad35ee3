"""The table says which targets are missed, and a partial run keeps the other results."""

import json

import pytest

from benchmarks.__main__ import keep, main
from benchmarks.comparison import alternate, at_least, at_most, compare

WHAT = ("speed", "a peer", "tokens/s")
OURS, THEIRS = [2.0, 3.0, 4.0], [1.0, 1.0, 4.0]  # the ratios are 2, 3 and 1


@pytest.mark.parametrize(
    ("target", "verdict"),
    [(at_least(2.0), "met"), (at_least(2.1), "missed"), (at_most(1.9), "missed"), (None, "")],
)
def test_the_median_ratio_is_judged(target, verdict):
    comparison = compare(WHAT, OURS, THEIRS, target)
    assert comparison.result == 2
    assert comparison.quartiles == (1.5, 2.5)
    assert comparison.verdict == verdict
    assert comparison.line().endswith(verdict)
    assert comparison.to_dict()["met"] == {"met": True, "missed": False, "": None}[verdict]


def test_every_second_round_has_the_opposite_order():
    order = []

    def side(name):
        order.append(name)
        return len(order)

    found = alternate({"a": lambda number: side("a"), "b": lambda number: side("b")}, 2, warmup=1)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [4, 5], "b": [3, 6]}


def test_a_partial_run_keeps_the_other_results(tmp_path):
    path = tmp_path / "results" / "comparisons.json"
    slow, fast = compare(WHAT, [1], [2], at_least(1)), compare(WHAT, [3], [2], at_least(1))
    keep(path, "decoding", [slow], {"date": "2026-11-01", "seconds": 1.2})
    keep(path, "training", [slow], {"date": "2026-11-01", "seconds": 1.2})
    keep(path, "training", [fast], {"date": "2026-11-02", "seconds": 3.4})
    results = json.loads(path.read_text())
    assert list(results) == ["training", "decoding"]  # in the order of the table
    assert [results[name]["date"] for name in results] == ["2026-11-02", "2026-11-01"]
    assert [results[name]["comparisons"][0]["met"] for name in results] == [True, False]


def test_an_unknown_name_runs_nothing(capsys):
    with pytest.raises(SystemExit):
        main(["training", "trainning"])
    assert "no comparison trainning" in capsys.readouterr().err
