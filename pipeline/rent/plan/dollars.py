"""What to train for so many dollars: for each card the model, its tokens, batch and rates.

The largest model that gets TOKENS_PER_PARAMETER is taken. All money is spent on tokens, but for a
share that other work takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.console.formats import amount, duration, money
from pipeline.job import Job
from pipeline.rent.plan.compared import Compared
from pipeline.rent.plan.estimate import Estimate, StageEstimate, estimate, workers_on
from pipeline.rent.plan.prices import RESTART_SECONDS, Offer
from pipeline.rent.plan.sizes import Size, settings_by_rule
from pipeline.run.preflight import stage_with_few_rows

# Compute is spent best at 8 (nanochat) to 20 tokens per parameter (Hoffmann et al. 2022).
TOKENS_PER_PARAMETER = 10
# The share of the money that is not planned: preparing data, evaluation and publishing cost
# something too, and a speed may be estimated too high.
SPARE = 0.1
# How often the steps are lowered until the estimate is within the budget.
_TRIES = 8


@dataclass(frozen=True)
class Money:
    """What may be spent. `hours` limits how long the run takes; None: no limit."""

    dollars: float
    hours: float | None = None

    def __str__(self) -> str:
        limit = "" if self.hours is None else f" and {self.hours:g} hours"
        return money(self.dollars) + limit

    def covers(self, estimate: Estimate) -> bool:
        """Return whether a run costs and takes no more."""
        if estimate.dollars is None or estimate.hours is None:
            return False
        in_time = self.hours is None or estimate.hours <= self.hours
        return in_time and estimate.dollars <= self.dollars * (1 - SPARE)


@dataclass(frozen=True)
class Asked:
    """What a person asks: a job or None, and what limits the plan. `on` is a rental."""

    job: str | None
    overrides: Sequence[str]
    money: Money
    gpus: Sequence[str] = ()
    on: str | None = None
    bench: Sequence[str] = ()


@dataclass(frozen=True)
class Purchase:
    """A model that is trained for the money on one machine.

    `settings` are the fields of `pretrain` that differ from the job's.
    """

    size: Size
    settings: Mapping[str, int | float]
    tokens: int
    estimate: Estimate

    @property
    def flops(self) -> float:
        """The FLOPs of pretraining: 2 for each multiply-accumulate forward, and 4 backward."""
        return 6.0 * self.size.cost.macs_per_token * self.tokens

    @property
    def tokens_per_parameter(self) -> float:
        """The tokens of pretraining for each parameter."""
        return self.tokens / self.size.cost.all_params

    @property
    def has_enough(self) -> bool:
        """Whether the model gets TOKENS_PER_PARAMETER."""
        return self.tokens_per_parameter >= TOKENS_PER_PARAMETER


@dataclass(frozen=True)
class Option:
    """What to train on one machine."""

    offer: Offer
    chosen: Purchase


def options_for(money: Money, sizes: Sequence[Size], market: Compared) -> list[Option]:
    """Return what to train on each machine that can do it for the money, the most FLOPs first.

    `sizes` come the smallest first. Raises BadInput if the money buys too little anywhere.
    """
    bought = [
        (offer, [p for size in sizes if (p := buy(size, offer, money, market)) is not None])
        for offer in market.offers
    ]
    enough = [(offer, models) for offer, models in bought if any(p.has_enough for p in models)]
    if not enough:
        raise _too_little(money, sizes[0], market)
    # Of the models that get enough tokens, the largest, which comes last.
    options = [Option(o, [p for p in models if p.has_enough][-1]) for o, models in enough]
    return sorted(options, key=lambda option: -option.chosen.flops)


def best_of_each(options: Sequence[Option]) -> list[Option]:
    """Return the best machine of each type of GPU, spot and on demand; and the best one whose GPUs
    divide a model."""
    best: dict[tuple[str | None, bool, bool], Option] = {}
    for option in options:
        offer, divided = option.offer, option.chosen.estimate.sharded
        best.setdefault((offer.gpu, offer.use_spot, divided), option)
    return list(best.values())


def buy(size: Size, offer: Offer, money: Money, market: Compared) -> Purchase | None:
    """Return the longest run of a model that the money pays for on a machine; None if it pays for
    none there, or if price, speed or memory are unknown or too small."""
    first = estimate(size.job, offer, size.known, num_nodes=market.num_nodes)
    tokens = _affordable(first, money, market.num_nodes)
    if tokens is None or tokens < size.job.data.seq_len:
        return None
    settings = settings_by_rule(size.reference, size.d_model, tokens)
    row = size.job.data.seq_len * int(settings["global_batch"])
    steps = int(tokens / row)
    job = with_settings(size.job, settings)
    workers = workers_on(job, offer, market.num_nodes)
    if stage_with_few_rows(job, workers):
        return None  # a GPU would have no row of a step
    for _ in range(_TRIES):
        if steps < 1:
            return None
        settings["steps"] = steps
        job = with_settings(size.job, settings)
        found = estimate(job, offer, size.known, num_nodes=market.num_nodes)
        if money.covers(found):
            return Purchase(size, settings, steps * row, found)
        # Another batch is a little slower, or has other micro-batches.
        steps = min(steps - 1, int(steps * 0.99))
    return None


def with_settings(job: Job, settings: Mapping[str, int | float]) -> Job:
    """Return the job with other fields in `pretrain`."""
    assert job.pretrain is not None
    return job.model_copy(update={"pretrain": job.pretrain.model_copy(update=dict(settings))})


def _affordable(first: Estimate, money: Money, num_nodes: int) -> float | None:
    """Return for how many tokens of pretraining the money lasts, judging by an estimate of another
    length. Hours grow linearly with tokens."""
    price, training = first.offer.price, first.training_seconds
    if not first.fits or first.hours is None or training is None or not price:
        return None
    stage = pretrain_of(first)
    if not stage.seconds or stage.tokens_per_second is None:
        return None
    hours = money.dollars * (1 - SPARE) / (price * num_nodes)
    if money.hours is not None:
        hours = min(hours, money.hours)
    by_preemptions = 3600 * first.hours / (RESTART_SECONDS + training)
    others = training - stage.seconds
    return (3600 * hours / by_preemptions - RESTART_SECONDS - others) * stage.tokens_per_second


def pretrain_of(found: Estimate) -> StageEstimate:
    """Return the estimate of the stage `pretrain`."""
    return next(stage for stage in found.stages if stage.stage == "pretrain")


# ---------------------------------------------------------------- budgets that are refused


def _too_little(money: Money, smallest: Size, market: Compared) -> BadInput:
    """Return the error for money that does not train the smallest model, with what would do."""
    params = smallest.cost.all_params
    tokens = TOKENS_PER_PARAMETER * params
    settings = settings_by_rule(smallest.reference, smallest.d_model, tokens)
    row = int(settings["global_batch"]) * smallest.job.data.seq_len
    settings["steps"] = -(-tokens // row)
    job = with_settings(smallest.job, settings)
    nodes = market.num_nodes
    found = [estimate(job, offer, smallest.known, num_nodes=nodes) for offer in market.offers]
    paid = [e for e in found if e.dollars is not None and e.hours is not None]
    if not paid:
        reasons = dict.fromkeys(e.problem or _unknown(e) for e in found)
        return BadInput(
            f"what {smallest.name} costs can't be said of any machine here: {'; '.join(reasons)}."
        )
    in_time = [e for e in paid if money.hours is None or (e.hours or 0.0) <= money.hours]
    cheapest = min(in_time, key=lambda e: e.dollars or 0.0, default=None)
    advice = "Give more, or train a smaller model of your own (docs/sizing.md)."
    if cheapest is None:
        cheapest = min(paid, key=lambda e: e.hours or 0.0)
        advice = "Give more hours."
    # A little more, because steps are whole, and up to cents.
    least = -(-1.03 * (cheapest.dollars or 0.0) / (1 - SPARE) * 100 // 1) / 100
    return BadInput(
        f"{money} buys less than the smallest model, {smallest.name} of "
        f"{amount(params)} parameters: at {TOKENS_PER_PARAMETER} tokens for each it needs "
        f"{amount(tokens)} tokens, which cost ${least:,.2f} in "
        f"{duration(3600 * (cheapest.hours or 0.0))} on {cheapest.offer}. {advice}"
    )


def _unknown(found: Estimate) -> str:
    if found.offer.price is None:
        return f"the price of {found.offer} is unknown"
    if any(stage.tokens is None for stage in found.stages):
        return "sft has epochs in place of steps, and how many steps they are is not known yet"
    return next((s.speed_from for s in found.stages if s.seconds is None), "its speed is unknown")
