"""What to train for so much money: sizes by rule and by a ladder, and budgets that are refused."""

import re
from dataclasses import replace

import pytest

from pion.errors import BadInput
from pipeline.ladder.law import Law
from pipeline.ladder.prediction import fit
from pipeline.rent.plan.compared import Compared
from pipeline.rent.plan.dollars import (
    NEARLY,
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
from tests.pipeline.ladder.made_up import ladder

# A law of models such as Pion's: of 100M multiplications a token on 2 billion tokens, 0.98.
LAW = Law(E=0.5, A=0.2 * 1e8**0.34, alpha=0.34, B=0.28 * 2e9**0.3, beta=0.3)


def offer(gpu="A40", *, spot=False, price=0.4):
    memory = GPU_TYPES[gpu].memory
    return Offer(gpu, 1, "RunPod", "CA", spot, price, price, memory, 60)


@pytest.fixture(scope="module")
def sizes():
    """The presets of Pion, with the data of jobs/pion-small.yaml."""
    return sizes_of(str(JOBS / "pion-small.yaml"), [])


def market(*offers):
    return Compared(offers or (offer(),), ())


@pytest.fixture(scope="module")
def by_ladder():
    sizes, lengths = (5_000_000, 10_000_000, 20_000_000), (10**8, 3 * 10**8, 10**9)
    return fit(ladder(LAW, sizes=sizes, lengths=lengths))


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
def test_without_a_ladder_the_largest_model_that_gets_enough_tokens_is_taken(sizes, dollars):
    [option] = options_for(Money(dollars), sizes, market())
    assert option.best is None
    assert option.chosen.predicted is None
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


# ---------------------------------------------------------------- by a ladder


def losses(sizes, money):
    there = market()
    bought = [p for size in sizes if (p := buy(size, offer(), money, there)) is not None]
    return {p.size.name: LAW.loss(p.size.cost.macs_per_token, p.tokens) for p in bought}


@pytest.mark.parametrize("dollars", [2, 5, 20])
def test_with_a_ladder_the_smallest_nearly_best_model_is_taken(sizes, by_ladder, dollars):
    [option] = options_for(Money(dollars), sizes, market(), by_ladder)
    true = losses(sizes, Money(dollars))
    assert true[option.best.size.name] == pytest.approx(min(true.values()), rel=1e-3)
    assert option.chosen.size.cost.all_params <= option.best.size.cost.all_params
    least = option.best.predicted.bits_per_byte
    assert option.chosen.predicted.bits_per_byte <= least * (1 + NEARLY)
    for smaller in sizes[: sizes.index(option.chosen.size)]:
        assert true[smaller.name] > least * (1 + NEARLY) * 0.999


# ---------------------------------------------------------------- refused


def refusal(money, sizes, there, by=None):
    with pytest.raises(BadInput) as refused:
        options_for(money, sizes, there, by)
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


def test_more_flops_than_the_ladder_is_trusted_for_say_how_far_it_goes(sizes, by_ladder):
    there = market()
    said = refusal(Money(1000), sizes, there, by_ladder)
    assert "the ladder is trusted up to 1.2e+19, 100 times its largest run: about $" in said
    found = re.search(r"about \$([\d,.]+) there", said)
    about = float(found[1].replace(",", ""))
    assert options_for(Money(0.8 * about), sizes, there, by_ladder)
    refusal(Money(1.25 * about), sizes, there, by_ladder)


def test_steps_that_are_not_known_are_said():
    found = sizes_of(str(JOBS / "demo.yaml"), ["sft.steps=null", "sft.epochs=2"])[:1]
    said = refusal(Money(20), found, market())
    assert "sft has epochs in place of steps" in said


def test_a_card_that_nothing_is_known_of_is_left_out(sizes):
    unknown = Offer("X1", 1, None, None, False, 0.1, 0.1, 2**36, 0)
    found = options_for(Money(20), sizes, market(unknown, offer()))
    assert [option.offer.gpu for option in found] == ["A40"]
