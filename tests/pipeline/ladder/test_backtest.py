"""Whether the small runs of a ladder would have predicted its large ones."""

from __future__ import annotations

from pipeline.ladder.backtest import backtest
from pipeline.ladder.command import fit_lines
from pipeline.ladder.fit import fit
from pipeline.ladder.points import Point
from tests.pipeline.ladder.made_up import LAWS, LENGTHS, NOISE, SIZES, ladder

# Small runs of 4 lengths.
MANY = tuple(sorted({*LENGTHS, 500_000, 2_000_000}))


def bent(points: list[Point]) -> list[Point]:
    """Return the points of runs that learn something else after 3 million tokens."""
    return [
        Point(p.run, p.macs_per_token, p.tokens, p.bits_per_byte * (0.9 if p.tokens > 3e6 else 1.0))
        for p in points
    ]


def test_a_ladder_that_follows_one_law_predicts_its_own_large_runs() -> None:
    found = backtest(ladder(LAWS[1], NOISE, lengths=MANY))
    assert found is not None
    assert found.small + len(found.errors) == len(SIZES) * len(MANY)
    assert abs(found.worst) < 0.02
    words = "\n".join(fit_lines(fit(ladder(LAWS[1], NOISE, lengths=MANY))))
    assert "smallest runs misses the" in words
    assert "Warning" not in words


def test_a_ladder_whose_large_runs_learn_something_else_warns() -> None:
    points = bent(ladder(LAWS[1], NOISE, lengths=MANY))
    found = backtest(points)
    assert found is not None
    assert found.worst < -0.05
    assert "Warning: larger runs end better than smaller ones say" in "\n".join(
        fit_lines(fit(points))
    )


def test_a_ladder_with_too_few_small_runs_says_nothing() -> None:
    points = ladder(LAWS[1], sizes=SIZES[-3:], lengths=LENGTHS[-3:])
    assert backtest(points) is None
    assert "smallest runs" not in "\n".join(fit_lines(fit(points)))
