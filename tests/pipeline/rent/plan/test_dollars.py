"""What to train for so much money: sizes by rule, and budgets that are refused."""

import re
from dataclasses import replace

import pytest

from pion.errors import BadInput
from pipeline.rent.plan.compared import Compared
from pipeline.rent.plan.dollars import (
    SPARE,
    TOKENS_PER_PARAMETER,
    Money,
    best_of_each,
    buy,
    options_for,
    with_settings,
)
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.sizes import sizes_of
from tests.paths import JOBS


def offer(gpu="A40", *, spot=False, price=0.4):
    memory = GPU_TYPES[gpu].memory
    return Offer(gpu, 1, "RunPod", "CA", spot, price, price, memory, 60)


@pytest.fixture(scope="module")
def sizes():
    """The presets of Pion, with the data of jobs/pion-small.yaml."""
    return sizes_of(str(JOBS / "pion-small.yaml"), [])


def market(*offers):
    return Compared(offers or (offer(),), ())


# ---------------------------------------------------------------- by rule


@pytest.mark.parametrize("dollars", [1, 5, 20, 100, 1000])
def test_the_estimate_of_pion_plan_stays_within_the_money(sizes, dollars):
    there = market(offer(), offer(spot=True, price=0.2), offer("H100", price=2.0))
    for option in options_for(Money(dollars), sizes, there):
        chosen = option.chosen
        job = with_settings(chosen.size.job, chosen.settings)
        again = estimate(job, option.offer)
        assert again == chosen.estimate
        assert 0.8 * dollars * (1 - SPARE) < again.dollars <= dollars * (1 - SPARE)
        pretrain = job.section("pretrain")
        assert chosen.tokens == pretrain.total_steps * pretrain.global_batch * 2048


@pytest.mark.parametrize("dollars", [2, 20, 200])
def test_the_largest_model_that_gets_enough_tokens_is_taken(sizes, dollars):
    [option] = options_for(Money(dollars), sizes, market())
    assert option.chosen.tokens_per_parameter >= TOKENS_PER_PARAMETER
    for larger in sizes[sizes.index(option.chosen.size) + 1 :]:
        bought = buy(larger, option.offer, Money(dollars), market())
        assert bought is None or bought.tokens_per_parameter < TOKENS_PER_PARAMETER


def test_cards_that_compute_more_for_the_money_come_first(sizes):
    there = market(offer(price=0.8), offer(), offer(spot=True, price=0.2))
    found = options_for(Money(20), sizes, there)
    assert [option.offer.price for option in found] == [0.2, 0.4, 0.8]


def test_hours_limit_how_long_a_run_takes(sizes):
    there = market(offer(), offer("H100", price=2.0))
    found = options_for(Money(20, hours=5), sizes, there)
    assert [option.offer.gpu for option in found] == ["H100", "A40"]
    for option in found:
        assert 4 < option.chosen.estimate.hours <= 5


def several(count, gib=None, *, spot=False):
    """Return a machine of so many A40s, or of cards with so much memory, at the price of each."""
    one = offer(spot=spot)
    memory = one.gpu_memory if gib is None else int(gib * 2**30)
    price = 0.4 * count
    return replace(one, count=count, spot=price, on_demand=price, gpu_memory=memory)


def test_several_cards_train_for_the_money_in_less_time(sizes):
    there = market(several(8), several(1), several(2), several(1, spot=True))
    found = options_for(Money(20), sizes, there)
    hours = {o.offer.count: o.chosen.estimate.hours for o in found if not o.offer.use_spot}
    assert found[0].offer.count == 1  # more cards are taken to lose some of their speed
    assert hours[8] < hours[1] / 6
    assert [o.offer for o in best_of_each(found) if not o.offer.use_spot] == [several(1)]


def test_cards_divide_a_model_that_fits_on_none_of_them(sizes):
    micro, small_cards = sizes[1:2], [several(1, 1.8), several(4, 1.8)]
    [option] = options_for(Money(30), micro, market(*small_cards))
    assert option.offer.count == 4
    assert option.chosen.estimate.sharded
    alone = market(several(1, 1.8))
    assert "the model does not fit" in refusal(Money(30), micro, alone)


def test_a_machine_with_more_cards_than_rows_is_left_out(sizes):
    nano = sizes[:1]
    bought = buy(nano[0], several(1), Money(2), market())
    rows = int(bought.settings["global_batch"])
    assert buy(nano[0], several(rows + 1), Money(2), market()) is None


def test_the_batch_follows_the_tokens(sizes):
    few, many = (buy(sizes[2], offer(), Money(dollars), market()) for dollars in (2.0, 200.0))
    assert few.settings["global_batch"] < 64 < many.settings["global_batch"]
    assert few.settings["lr"] < 3e-4 < many.settings["lr"]


# ---------------------------------------------------------------- refused


def refusal(money, sizes, there):
    with pytest.raises(BadInput) as refused:
        options_for(money, sizes, there)
    return str(refused.value)


def test_money_that_trains_nothing_says_how_much_would_do(sizes):
    there = market(offer(), offer("H100", price=2.0))
    said = refusal(Money(0.05), sizes, there)
    assert said.startswith("$0.05 buys less than the smallest model, pion-nano of 28.7 million ")
    assert "at 10 tokens for each it needs 287 million tokens" in said
    found = re.search(r"which cost \$([\d.]+) in", said)
    least = float(found[1])
    [option, *_] = options_for(Money(least), sizes, there)
    assert option.chosen.size.name == "pion-nano"
    refusal(Money(least * 0.8), sizes, there)


def test_hours_that_train_nothing_say_so(sizes):
    said = refusal(Money(20, hours=0.05), sizes, market())
    assert said.startswith("$20.00 and 0.05 hours buys less than the smallest model")
    assert said.endswith("Give more hours.")


def test_steps_that_are_not_known_are_said():
    found = sizes_of(str(JOBS / "demo.yaml"), ["sft.steps=null", "sft.epochs=2"])[:1]
    said = refusal(Money(20), found, market())
    assert "sft has epochs in place of steps" in said


def test_a_card_that_nothing_is_known_of_is_left_out(sizes):
    unknown = Offer("X1", 1, None, None, False, 0.1, 0.1, 2**36, 0)
    found = options_for(Money(20), sizes, market(unknown, offer()))
    assert [option.offer.gpu for option in found] == ["A40"]
