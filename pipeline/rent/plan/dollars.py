"""What to train for so many dollars: for each card the model, its tokens, batch and rates.

The models are a job's own and the presets of its family. The largest that gets
TOKENS_PER_PARAMETER is taken. All money is spent on tokens, but for a share that other work takes.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import amount, duration, money
from pipeline.job.section import DOLLARS, HOURS, made
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.sizes import Size, settings_by_rule

# Compute is spent best at 8 (nanochat) to 20 tokens per parameter (Hoffmann et al. 2022).
TOKENS_PER_PARAMETER = 10
# The share of the money that is not planned: preparing data, evaluation and publishing cost
# something too, and a speed may be estimated too high.
SPARE = 0.1
# How often the tokens are corrected: another batch is a little slower, or has other micro-batches.
_TRIES = 8
# Less than this share of the hours may be left.
CLOSE = 1e-4
# The rental of which a copy is made, and rentals of one card, on demand.
SKY, MY_SKY = "sky/runpod-spot.yaml", "sky/mine.yaml"
ONE_CARD = {"A40": "sky/runpod-a40.yaml", "RTXA4000": "sky/runpod-a4000.yaml"}


@dataclass(frozen=True)
class Money:
    """What may be spent. `hours` limits how long the run takes; None: no limit. Raises BadInput for
    numbers that are no amounts."""

    dollars: float
    hours: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("dollars", DOLLARS), ("hours", HOURS)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise BadInput(f"--{name} {value:g}: give a number above 0, at most {most:,}.")

    def __str__(self) -> str:
        limit = "" if self.hours is None else f" and {self.hours:g} hours"
        return money(self.dollars) + limit


@dataclass(frozen=True)
class Purchase:
    """A model that is trained for the money on one machine: a row of `pion plan --dollars`.

    `settings` are the fields of `pretrain` that differ from the job's.
    """

    size: Size
    settings: Mapping[str, int | float]
    estimate: Estimate

    @property
    def tokens(self) -> int:
        """The tokens of pretraining."""
        return self.estimate.stages[0].tokens or 0

    @property
    def tokens_per_parameter(self) -> float:
        """The tokens of pretraining for each parameter."""
        return self.tokens / self.size.cost.all_params

    @property
    def flops(self) -> float:
        """The FLOPs of pretraining: 2 for each multiply-accumulate forward, and 4 backward."""
        return 6.0 * self.size.cost.macs_per_token * self.tokens

    def as_json(self) -> dict[str, Any]:
        """Return the values of `--json`, whose keys are pinned (tests/golden/json/keys.txt)."""
        stage = self.estimate.stages[0]
        return {
            "model": self.size.name,
            "job": self.size.path,
            "parameters": self.size.cost.all_params,
            "macs_per_token": self.size.cost.macs_per_token,
            "tokens": self.tokens,
            "tokens_per_parameter": self.tokens_per_parameter,
            "flops": self.flops,
            "settings": dict(self.settings),
            "hours": self.estimate.hours,
            "dollars": self.estimate.dollars,
            "tokens_per_second": stage.tokens_per_second,
            "speed_from": stage.speed_from,
            "measured": stage.measured,
            "sharded": self.estimate.sharded,
        }


def priced_offers(offers: Sequence[Offer], notes: Sequence[str]) -> list[Offer]:
    """Return the machines with a GPU and a price. Raises BadInput, with the notes about prices, if
    there are none."""
    priced = [offer for offer in offers if offer.price is not None and offer.gpu]
    if not priced:
        lines = [
            "no machine with a GPU has a price here, so nobody knows what the money buys.",
            *(f"  {note}" for note in notes),
            "Add prices of your own in dollars per hour to the command, such as prices.A40=0.4, or "
            "try again with a network: SkyPilot then fetches its catalog.",
        ]
        raise BadInput("\n".join(lines))
    return priced


def purchases(
    money: Money, sizes: Sequence[Size], offers: Sequence[Offer], num_nodes: int = 1
) -> list[Purchase]:
    """Return what to train on each machine that can do it for the money, the most FLOPs first.

    `sizes` come the smallest first. Raises BadInput if the money buys too little anywhere.
    """
    rows: list[Purchase] = []
    for offer in offers:
        runs = (buy(size, offer, money, num_nodes) for size in reversed(sizes))
        enough = (p for p in runs if p and p.tokens_per_parameter >= TOKENS_PER_PARAMETER)
        rows += islice(enough, 1)
    if not rows:
        raise _too_little(money, sizes[0], offers, num_nodes)
    return sorted(rows, key=lambda row: -row.flops)


def best_of_each(rows: Sequence[Purchase]) -> list[Purchase]:
    """Return the best machine of each type of GPU, spot and on demand; and the best one whose GPUs
    divide a model."""
    best = {
        (row.estimate.offer.gpu, row.estimate.offer.use_spot, row.estimate.sharded): row
        for row in reversed(rows)
    }
    return sorted(best.values(), key=lambda row: -row.flops)


def buy(size: Size, offer: Offer, money: Money, num_nodes: int = 1) -> Purchase | None:
    """Return the longest run of a model that the money pays for on a machine; None if it pays for
    none there, or if price, speed or memory are unknown or too small."""
    paid = money.dollars * (1 - SPARE) / (offer.price * num_nodes) if offer.price else 0.0
    hours, best = min(paid, money.hours or math.inf), None
    tokens = float(TOKENS_PER_PARAMETER * size.cost.all_params)
    for _ in range(_TRIES):
        row = train_on(size, tokens, offer, num_nodes)
        taken, lost = row.estimate.hours, row.estimate.lost_hours or 0.0
        if taken is None:
            break
        if taken <= hours and (best is None or best.tokens < row.tokens):
            best = row
        if 0 <= hours - taken < CLOSE * hours:
            break
        per_hour = 3600 * (row.estimate.stages[0].tokens_per_second or 0.0)
        tokens = row.tokens + (hours - taken) * (1 - lost / taken) * per_hour
        if tokens < size.job.data.seq_len:
            break
    return best


def train_on(size: Size, tokens: float, offer: Offer, num_nodes: int = 1) -> Purchase:
    """Return what it takes to train a model on about so many tokens, with the settings by rule."""
    settings = settings_by_rule(size.reference, size.job.model_config_resolved().d_model, tokens)
    pretrain = size.job.section("pretrain").model_copy(update=settings)
    job = size.job.model_copy(update={"pretrain": pretrain})
    return Purchase(size, settings, estimate(job, offer, size.known, num_nodes=num_nodes))


def command_for(rows: Sequence[Purchase], dollars: float, on: str | None) -> tuple[str, str | None]:
    """Return the command that rents the first machine and trains what is recommended, and how to
    make the SkyPilot file that it names; None: the file is there. `on` is the rental of the plan.

    `pion launch` rents the cheapest card of a file, and that is often another card.
    """
    best = rows[0]
    job, offer = best.size.job, best.estimate.offer
    cheapest = min(row.estimate.offer.price or 0.0 for row in rows)
    rental, change = MY_SKY, None
    if on is not None and offer.price == cheapest:
        rental = on
    elif on is None and offer.count == 1 and not offer.use_spot and offer.gpu in ONE_CARD:
        rental = ONE_CARD[offer.gpu]
    else:
        how = f"copy {on or SKY} to {MY_SKY} with"
        if on is None and not Path(SKY).is_file():
            rental = Path(SKY).name
            how = f"make {rental} (pion init {Path(SKY).stem}), and write"
        infra = "" if offer.cloud is None else f"infra: {offer.cloud.lower()}, "
        change = (
            f"{how} {infra}accelerators: {offer.gpu}:{offer.count}, "
            f"use_spot: {str(offer.use_spot).lower()} in place of its machines"
        )
    pretrain = job.section("pretrain")
    differing = {k: v for k, v in best.settings.items() if getattr(pretrain, k) != v}
    name = best.size.name if job.name == best.size.reference.model.preset else job.name
    fields = {
        **{f"pretrain.{key}": f"{value}" for key, value in differing.items()},
        "name": f"{name}-{dollars:g}-dollars",
        "budget.dollars": f"{dollars:g}",
        **({} if "://" in job.store else {"store": "s3://my-bucket/runs"}),
    }
    overrides = [item for item in best.size.overrides if item.partition("=")[0] not in fields]
    new = [f"{name}={value}" for name, value in fields.items()]
    return shlex.join(["pion", "launch", best.size.path, "--on", rental, *overrides, *new]), change


def _too_little(budget: Money, smallest: Size, offers: Sequence[Offer], num_nodes: int) -> BadInput:
    """Return the error for money that does not train the smallest model, with what would do."""
    params = smallest.cost.all_params
    tokens = TOKENS_PER_PARAMETER * params
    # A little more, because steps are whole.
    rows = [train_on(smallest, 1.03 * tokens, offer, num_nodes).estimate for offer in offers]
    paid = [row for row in rows if row.dollars is not None]
    if not paid:
        unknown = {
            "sft has epochs in place of steps, and how many steps they are is not known yet": any(
                stage.tokens is None for row in rows for stage in row.stages
            ),
            **{s.speed_from: s.tokens_per_second is None for row in rows for s in row.stages},
            **{str(row.problem): row.problem for row in rows},
        }
        reasons = "; ".join(made(unknown))
        return BadInput(f"what {smallest.name} costs can't be said of any machine here: {reasons}.")
    in_time = [row for row in paid if (row.hours or 0.0) <= (budget.hours or math.inf)]
    more_money = "Give more, or train a smaller model of your own (`pion help sizing`)."
    advice = more_money if in_time else "Give more hours."
    best = min(in_time or paid, key=attrgetter("dollars" if in_time else "hours"))
    least = money(math.ceil(100 * (best.dollars or 0.0) / (1 - SPARE)) / 100)
    return BadInput(
        f"{budget} buys less than the smallest model, {smallest.name} of "
        f"{amount(params)} parameters: at {TOKENS_PER_PARAMETER} tokens for each it needs "
        f"{amount(tokens)} tokens, which cost {least} in "
        f"{duration(3600 * (best.hours or 0.0))} on {best.offer}. "
        f"{advice}"
    )
