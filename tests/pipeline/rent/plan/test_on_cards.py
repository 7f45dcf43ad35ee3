"""Which numbers of cards a job can use, what a token costs on them, and what is warned about."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.on_cards import OnCards, on_cards, warnings_about
from tests.paths import JOBS
from tests.pipeline.rent.plan.test_estimate import offer
from tests.support.jobs import tiny_job

# 2 rows of 256 tokens: so few that sending the gradients takes longer than computing them.
FEW = ("data.seq_len=256", "pretrain.global_batch=2", "sft=null")


def small(*overrides: str) -> Job:
    return load_job(JOBS / "pion-small.yaml", overrides)


def of(gpu: str, *overrides: str, count: int = 1, num_nodes: int = 1) -> OnCards:
    job = small(*overrides)
    guess = estimate(job, offer(gpu, count=count), num_nodes=num_nodes)
    found = on_cards(job, guess, num_nodes)
    assert found is not None
    return found


def test_one_two_four_and_eight_cards_take_less_time_each_and_cost_a_little_more() -> None:
    found = of("A40")
    assert [row.cards for row in found.rows] == [1, 2, 4, 8]
    assert found.stage == "pretrain", "the longest"
    steps = [row.step for row in found.rows]
    seconds = [step.seconds for step in steps if step is not None]
    assert seconds == sorted(seconds, reverse=True)
    costs = [row.cost for row in found.rows]
    assert costs[0] == 1.0
    assert costs == sorted(costs)  # type: ignore[type-var]
    assert not any(row.asked for row in found.rows)


def test_one_card_is_as_fast_as_the_plan_says_and_so_are_as_many_as_are_asked_for() -> None:
    job, machine = small("sft=null", "hardware.workers=4"), offer("A40", count=4)
    guess = estimate(job, machine)
    found = on_cards(job, guess)
    assert found is not None
    (asked,) = [row for row in found.rows if row.asked]
    assert asked.cards == 4
    assert asked.step is not None
    assert asked.step.tokens_per_second == pytest.approx(guess.tokens_per_second)
    alone = estimate(small("sft=null"), offer("A40"))
    assert found.one.tokens_per_second == pytest.approx(alone.tokens_per_second)


def test_an_odd_number_that_is_asked_for_has_a_row_too() -> None:
    assert [row.cards for row in of("A40", "hardware.workers=3").rows] == [1, 2, 3, 4, 8]
    assert [row.cards for row in of("A40", count=8, num_nodes=2).rows] == [1, 2, 4, 8, 16]


def test_more_cards_than_rows_say_why_not() -> None:
    rows = of("A40", "pretrain.global_batch=6", "sft=null").rows
    assert [row.why_not for row in rows[:3]] == [None, None, None]
    assert rows[3].step is None
    assert rows[3].why_not == (
        "pretrain.global_batch 6 is less than one row for each of the 8 workers"
    )
    two, four = rows[1].step, rows[2].step
    assert two is not None
    assert four is not None
    assert four.computing == pytest.approx(two.computing * 2 / 3), "3 rows, and 2 rows at most"


def test_a_card_that_the_job_does_not_fit_on_or_of_unknown_speed_has_no_rows() -> None:
    job = load_job(JOBS / "pion-xl.yaml")
    assert on_cards(job, estimate(job, offer("T4"))) is None
    unknown = dataclasses.replace(offer("A40"), gpu="MI300X")
    assert on_cards(small(), estimate(small(), unknown)) is None
    without_gpu = dataclasses.replace(offer("A40"), gpu=None)
    assert on_cards(small(), estimate(small(), without_gpu)) is None


def test_a_model_may_fit_on_eight_cards_that_does_not_fit_on_one() -> None:
    """Each of eight cards has an eighth of the moments."""
    job = load_job(JOBS / "pion-xl.yaml", ("sft=null",))
    found = on_cards(job, estimate(job, offer("T4", count=8)))
    assert found is not None
    assert found.rows[0].step is None
    assert (found.rows[0].why_not or "").startswith("1 × T4: the model does not fit: ")
    assert found.rows[3].step is not None
    assert 1 < (found.rows[3].cost or 0) < 2, "next to one card that would have the memory"


# ---------------------------------------------------------------- warnings


def test_two_cheap_cards_that_are_slower_than_one_are_warned_about_with_the_numbers() -> None:
    found = of("RTXA4000", *FEW)
    one, two = (row.step for row in found.rows[:2])
    assert one is not None
    assert two is not None
    assert two.seconds > one.seconds
    assert warnings_about([found]) == [
        f"slower than one card: 2 × RTXA4000, {two.seconds:.3g} s a step instead of "
        f"{one.seconds:.3g} (PCI Express 4.0 x16, 18 GB/s). A step sums 412 MB of gradients over "
        "the link"
    ]


def test_cards_that_wait_for_their_hosts_are_as_slow_as_one_and_dearer() -> None:
    found = on_cards(tiny_job(), estimate(tiny_job(), offer("H100-SXM")))
    assert found is not None
    (line,) = warnings_about([found])
    assert line.startswith("a token costs over 10% more than on one card: 2 × H100-SXM, 100% more")


def test_h100s_are_not_warned_about_at_the_jobs_own_batch() -> None:
    assert warnings_about([of("H100-SXM")]) == []


def test_a_token_that_costs_much_more_is_warned_about_at_the_first_such_number() -> None:
    found = of("L40S")
    (row,) = [row for row in found.rows if (row.cost or 0) > 1.1]
    (line,) = warnings_about([found])
    assert line == (
        f"a token costs over 10% more than on one card: 8 × L40S, {(row.cost or 0) - 1:.0%} more "
        "(PCI Express 4.0 x16, 18 GB/s). A step sums 412 MB of gradients over the link"
    )


def test_several_types_share_a_line() -> None:
    (line,) = warnings_about([of("RTXA4000", *FEW), of("RTX4090", *FEW)])
    assert "2 × RTXA4000" in line
    assert "2 × RTX4090" in line


def test_a_warning_names_a_few_of_many_types() -> None:
    types = ("RTXA4000", "RTX4090", "A40", "L4", "A30", "RTXA5000")
    (line,) = warnings_about([of(gpu, *FEW) for gpu in types])
    assert "2 × L4" in line
    assert "A30" not in line
    assert "; 2 more types. A step sums" in line


def test_a_rental_is_warned_about_the_number_that_it_asks_for_and_about_no_other() -> None:
    assert warnings_about([of("RTXA4000", *FEW)], only_asked=True) == []
    (line,) = warnings_about([of("RTXA4000", *FEW, count=2)], only_asked=True)
    assert line.startswith("slower than one card: 2 × RTXA4000")
    assert warnings_about([of("A40", count=2)], only_asked=True) == []


def test_two_machines_over_a_slow_network_are_slower_than_one() -> None:
    few = ("pretrain.global_batch=8", "sft=null")
    assert warnings_about([of("A40", *few)], only_asked=True) == []
    (line,) = warnings_about([of("A40", *few, num_nodes=2)], only_asked=True)
    assert line.startswith("slower than one card: 2 × A40")
    assert "10 Gb/s between machines, 1.25 GB/s" in line
    rows = of("A40", count=4, num_nodes=2).rows
    assert [row.link.gb_per_second for row in rows] == [18, 18, 18, 1.25], "4 cards are together"


def test_nothing_is_warned_about_if_nothing_is_known() -> None:
    assert warnings_about([]) == []
