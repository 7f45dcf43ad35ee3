"""What to train for so much money: the models that it buys, and budgets that are refused."""

import re
from dataclasses import replace

import pytest

from pion.errors import BadInput
from pipeline.rent.plan.dollars import (
    SPARE,
    TOKENS_PER_PARAMETER,
    Money,
    best_of_each,
    buy,
    purchases,
)
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.sizes import sizes_of
from tests.paths import JOBS
from tests.pipeline.rent.plan.test_estimate import offer

A40, SPOT, H100 = offer("A40"), offer("A40", spot=True, price=0.2), offer("H100", price=2.0)


@pytest.fixture(scope="module")
def sizes():
    """The presets of Pion, with the data of jobs/pion-small.yaml."""
    return sizes_of(str(JOBS / "pion-small.yaml"), [])


def several(count, gib=None, *, spot=False):
    """Return a machine of so many A40s, or of cards with so much memory, at the price of each."""
    memory = A40.gpu_memory if gib is None else int(gib * 2**30)
    return replace(offer("A40", spot=spot, price=0.4 * count, count=count), gpu_memory=memory)


@pytest.mark.parametrize("dollars", [1, 20, 1000])
def test_the_largest_model_that_gets_enough_tokens_is_trained_for_all_of_the_money(sizes, dollars):
    for row in purchases(Money(dollars), sizes, [A40, SPOT, H100]):
        section = row.size.job.section("pretrain").model_copy(update=dict(row.settings))
        machine = row.estimate.offer
        again = estimate(row.size.job.model_copy(update={"pretrain": section}), machine)
        assert again == row.estimate
        assert 0.999 < again.dollars / (dollars * (1 - SPARE)) <= 1
        assert row.tokens == section.total_steps * section.global_batch * 2048
        assert row.tokens_per_parameter >= TOKENS_PER_PARAMETER
        for larger in sizes[sizes.index(row.size) + 1 :]:
            bought = buy(larger, machine, Money(dollars))
            assert bought is None or bought.tokens_per_parameter < TOKENS_PER_PARAMETER
            assert bought is None or bought.estimate.dollars <= dollars * (1 - SPARE)


def test_cards_that_compute_more_for_the_money_come_first_and_hours_limit_them(sizes):
    dear, unknown = offer("A40", price=0.8), Offer("X1", 1, spot=0.1, on_demand=0.1)
    bought = purchases(Money(20), sizes, [dear, unknown, A40, SPOT])
    assert [row.estimate.offer for row in bought] == [SPOT, A40, dear]
    in_time = purchases(Money(20, hours=5), sizes, [A40, H100])
    assert [row.estimate.offer for row in in_time] == [H100, A40]
    assert all(4 < row.estimate.hours <= 5 for row in in_time)


def test_several_cards_train_for_the_money_in_less_time(sizes):
    bought = purchases(
        Money(20), sizes, [several(8), several(1), several(2), several(1, spot=True)]
    )
    demand = [row.estimate for row in bought if not row.estimate.offer.use_spot]
    hours = {row.offer.count: row.hours for row in demand}
    assert bought[0].estimate.offer.count == 1  # of several, each loses some of its speed
    assert hours[8] < hours[1] / 6
    best = [row.estimate.offer for row in best_of_each(bought)]
    assert [machine for machine in best if not machine.use_spot] == [several(1)]
    rows = int(buy(sizes[0], several(1), Money(2)).settings["global_batch"])
    assert buy(sizes[0], several(rows + 1), Money(2)) is None, "more cards than rows"


def test_cards_divide_a_model_that_fits_on_none_of_them(sizes):
    micro = sizes[1:2]
    [row] = purchases(Money(30), micro, [several(1, 1.8), several(4, 1.8)])
    assert (row.estimate.offer.count, row.estimate.sharded) == (4, True)
    assert "the model does not fit" in refusal(Money(30), micro, several(1, 1.8))


def test_the_batch_follows_the_tokens(sizes):
    few, many = (buy(sizes[2], A40, Money(dollars)).settings for dollars in (2.0, 200.0))
    assert few["global_batch"] < 64 < many["global_batch"]
    assert few["lr"] < 3e-4 < many["lr"]


# ---------------------------------------------------------------- refused


def refusal(money, sizes, *offers):
    with pytest.raises(BadInput) as refused:
        purchases(money, sizes, offers)
    return str(refused.value)


def test_money_or_hours_that_train_nothing_say_how_much_would_do(sizes):
    why = refusal(Money(0.05), sizes, A40, H100)
    assert why.startswith("$0.05 buys less than the smallest model, pion-nano of 28.7 million ")
    assert "at 10 tokens for each it needs 287 million tokens" in why
    assert "Give more, or train a smaller model of your own" in why
    least = float(re.search(r"which cost \$([\d.]+) in", why)[1])
    assert purchases(Money(least), sizes, [A40, H100])[0].size.name == "pion-nano"
    refusal(Money(least * 0.8), sizes, A40, H100)
    fast = offer("H100", price=50.0)
    why = refusal(Money(20, hours=0.05), sizes, A40, fast)
    assert why.startswith("$20.00 and 0.05 hours buys less than the smallest model")
    assert why.endswith(f" on {fast}. Give more hours.")


def test_steps_that_are_not_known_are_said():
    demo = sizes_of(str(JOBS / "demo.yaml"), ["sft.steps=null", "sft.epochs=2"])[:1]
    assert "sft has epochs in place of steps" in refusal(Money(20), demo, A40)


@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), float("inf"), 1e12])
def test_numbers_that_are_no_money_are_refused(value):
    for amounts, option in (((value,), "--dollars"), ((20.0, value), "--hours")):
        with pytest.raises(BadInput, match=rf"{option} .*: give a number above 0"):
            Money(*amounts)
