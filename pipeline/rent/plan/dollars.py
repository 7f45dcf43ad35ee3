"""What to train for so many dollars: for each card the model, its tokens, batch and rates.

The models are a job's own and the presets of its family. The largest that gets
TOKENS_PER_PARAMETER is taken. All money is spent on tokens, but for a share that other work takes.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import amount, duration, money
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job import Job
from pipeline.job.section import DOLLARS, HOURS
from pipeline.rehearsal.rehearse import expect_rows
from pipeline.rent.plan.compared import machines_for
from pipeline.rent.plan.estimate import Estimate, estimate, workers_on
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.sizes import Size, sizes_of
from pipeline.rent.plan.speeds import Known, bench_results, past_speeds
from pipeline.rent.plan.what_fits import COUNTS
from pipeline.run.preflight import stage_with_few_rows

# Compute is spent best at 8 (nanochat) to 20 tokens per parameter (Hoffmann et al. 2022).
TOKENS_PER_PARAMETER = 10
# The share of the money that is not planned: preparing data, evaluation and publishing cost
# something too, and a speed may be estimated too high.
SPARE = 0.1
# How often the steps are lowered until the estimate is within the budget.
_TRIES = 8
# The rental of which a copy is made, and rentals of one card, on demand.
SKY, MY_SKY = "sky/runpod-spot.yaml", "sky/mine.yaml"
ONE_CARD = {"A40": "sky/runpod-a40.yaml", "RTXA4000": "sky/runpod-a4000.yaml"}


@dataclass(frozen=True)
class Money:
    """What may be spent. `hours` limits how long the run takes; None: no limit."""

    dollars: float
    hours: float | None = None

    def __str__(self) -> str:
        limit = "" if self.hours is None else f" and {self.hours:g} hours"
        return money(self.dollars) + limit

    def covers(self, row: Estimate) -> bool:
        """Return whether a run costs and takes no more."""
        if row.dollars is None or row.hours is None:
            return False
        in_time = self.hours is None or row.hours <= self.hours
        return in_time and row.dollars <= self.dollars * (1 - SPARE)


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
    """A model that is trained for the money on one machine: a row of `pion plan --dollars`.

    `settings` are the fields of `pretrain` that differ from the job's.
    """

    size: Size
    settings: Mapping[str, int | float]
    tokens: int
    estimate: Estimate

    @property
    def tokens_per_parameter(self) -> float:
        """The tokens of pretraining for each parameter."""
        return self.tokens / self.size.cost.all_params

    @property
    def flops(self) -> float:
        """The FLOPs of pretraining: 2 for each multiply-accumulate forward, and 4 backward."""
        return 6.0 * self.size.cost.macs_per_token * self.tokens

    @property
    def settings_in_words(self) -> str:
        """Steps, batch and rates."""
        rates = dict(self.settings)
        steps, batch = rates.pop("steps"), rates.pop("global_batch")
        words = ", ".join(f"{name} {value:g}" for name, value in rates.items())
        return f"{steps:,} steps of {batch:,} × {self.size.job.data.seq_len:,} tokens, {words}"

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


def purchases_for(asked: Asked, *, quiet: bool) -> tuple[list[Purchase], list[str]]:
    """Return what to train for the money on each machine, the most FLOPs first, and notes.

    Raises BadInput for a job with mistakes, for money that buys too little, and if no machine has a
    price.
    """
    numbers = {"--dollars": (asked.money.dollars, DOLLARS), "--hours": (asked.money.hours, HOURS)}
    for option, (value, most) in numbers.items():
        if value is not None and not 0 < value <= most:
            raise BadInput(f"{option} {value:g}: give a number above 0, at most {most:,}.")
    with saying_if_slow("reading jobs and the speeds of earlier runs", quiet=quiet):
        sizes = sizes_of(asked.job, asked.overrides)
        results = bench_results(asked.bench)
        # A store that does not answer costs a few seconds, and not as many for each model.
        with ThreadPoolExecutor(len(sizes)) as pool:
            runs = pool.map(past_speeds, [size.job for size in sizes])
            sizes = [replace(size, known=Known(past, results)) for size, past in zip(sizes, runs)]
        uncertain = [expect_rows(size.job) for size in sizes]
    compared = machines_for(sizes[0].job, asked.gpus, asked.on, COUNTS, quiet=quiet)
    notes = [*compared.notes, *dict.fromkeys(filter(None, uncertain))]
    offers = [offer for offer in compared.offers if offer.price is not None and offer.gpu]
    if not offers:
        lines = [
            "no machine with a GPU has a price here, so nobody knows what the money buys.",
            *(f"  {note}" for note in compared.notes),
            "Give prices of your own in dollars per hour, such as `prices={A40: 0.4}`, or "
            "try again with a network: SkyPilot then fetches its catalog.",
        ]
        raise BadInput("\n".join(lines))
    return purchases(asked.money, sizes, offers, compared.num_nodes), notes


def purchases(
    money: Money, sizes: Sequence[Size], offers: Sequence[Offer], num_nodes: int = 1
) -> list[Purchase]:
    """Return what to train on each machine that can do it for the money, the most FLOPs first.

    `sizes` come the smallest first. Raises BadInput if the money buys too little anywhere.
    """
    rows = []
    for offer in offers:
        bought = (buy(size, offer, money, num_nodes) for size in reversed(sizes))
        enough = (p for p in bought if p and p.tokens_per_parameter >= TOKENS_PER_PARAMETER)
        rows += [row for row in [next(enough, None)] if row is not None]
    if not rows:
        raise _too_little(money, sizes[0], offers, num_nodes)
    return sorted(rows, key=lambda row: -row.flops)


def best_of_each(rows: Sequence[Purchase]) -> list[Purchase]:
    """Return the best machine of each type of GPU, spot and on demand; and the best one whose GPUs
    divide a model."""
    best: dict[tuple[str | None, bool, bool], Purchase] = {}
    for row in rows:
        offer = row.estimate.offer
        best.setdefault((offer.gpu, offer.use_spot, row.estimate.sharded), row)
    return list(best.values())


def buy(size: Size, offer: Offer, money: Money, num_nodes: int = 1) -> Purchase | None:
    """Return the longest run of a model that the money pays for on a machine; None if it pays for
    none there, or if price, speed or memory are unknown or too small."""
    first = estimate(size.job, offer, size.known, num_nodes=num_nodes)
    hours = money.dollars * (1 - SPARE) / (offer.price * num_nodes) if offer.price else 0.0
    tokens = first.tokens_of_first_in(hours if money.hours is None else min(hours, money.hours))
    if tokens is None or tokens < size.job.data.seq_len:
        return None
    settings = size.settings_for(tokens)
    row = size.job.data.seq_len * int(settings["global_batch"])
    steps = int(tokens / row)
    if stage_with_few_rows(
        with_settings(size.job, settings), workers_on(size.job, offer, num_nodes)
    ):
        return None  # a GPU would have no row of a step
    for _ in range(_TRIES):
        if steps < 1:
            return None
        settings["steps"] = steps
        found = estimate(with_settings(size.job, settings), offer, size.known, num_nodes=num_nodes)
        if money.covers(found):
            return Purchase(size, settings, steps * row, found)
        # Another batch is a little slower, or has other micro-batches.
        steps = min(steps - 1, int(steps * 0.99))
    return None


def with_settings(job: Job, settings: Mapping[str, int | float]) -> Job:
    """Return the job with other fields in `pretrain`."""
    pretrain = job.section("pretrain").model_copy(update=dict(settings))
    return job.model_copy(update={"pretrain": pretrain})


def command_for(asked: Asked, rows: Sequence[Purchase]) -> tuple[str, str | None]:
    """Return the command that rents the first machine and trains what is recommended, and how to
    make the SkyPilot file that it names; None: the file is there.

    `pion launch` rents the cheapest card of a file, and that is often another card.
    """
    best, dollars = rows[0], f"{asked.money.dollars:g}"
    job, offer, on = best.size.job, best.estimate.offer, asked.on
    cheapest = min(row.estimate.offer.price or 0.0 for row in rows)
    rental, change = MY_SKY, None
    if on is not None and offer.price == cheapest:
        rental = on
    elif on is None and offer.count == 1 and not offer.use_spot and offer.gpu in ONE_CARD:
        rental = ONE_CARD[offer.gpu]
    else:
        place = "" if offer.cloud is None else f"infra: {offer.cloud.lower()}, "
        change = (
            f"copy {on or SKY} to {MY_SKY} with {place}accelerators: {offer.gpu}:{offer.count}, "
            f"use_spot: {str(offer.use_spot).lower()} in place of its machines"
        )
    fields = {
        f"pretrain.{name}": f"{value:g}"
        for name, value in best.settings.items()
        if getattr(job.section("pretrain"), name) != value
    }
    fields["pretrain.steps"] = str(best.settings["steps"])
    name = best.size.name if job.name == best.size.reference.model.preset else job.name
    fields |= {"name": f"{name}-{dollars}-dollars", "budget.dollars": dollars}
    if "://" not in job.store:
        fields["store"] = "s3://my-bucket/runs"
    kept = [item for item in best.size.overrides if item.partition("=")[0] not in fields]
    new = [f"{name}={value}" for name, value in fields.items()]
    return shlex.join(["pion", "launch", best.size.path, "--on", rental, *kept, *new]), change


def _too_little(
    money_there: Money, smallest: Size, offers: Sequence[Offer], num_nodes: int
) -> BadInput:
    """Return the error for money that does not train the smallest model, with what would do."""
    params = smallest.cost.all_params
    tokens = TOKENS_PER_PARAMETER * params
    settings = smallest.settings_for(tokens)
    settings["steps"] = -(-tokens // (int(settings["global_batch"]) * smallest.job.data.seq_len))
    job = with_settings(smallest.job, settings)
    rows = [estimate(job, offer, smallest.known, num_nodes=num_nodes) for offer in offers]
    paid = [
        (row.dollars, row.hours, row)
        for row in rows
        if row.dollars is not None and row.hours is not None
    ]
    if not paid:
        reasons = dict.fromkeys(str(row.problem or _unknown(row)) for row in rows)
        return BadInput(
            f"what {smallest.name} costs can't be said of any machine here: {'; '.join(reasons)}."
        )
    most = money_there.hours or math.inf
    in_time = [row for row in paid if row[1] <= most]
    advice = "Give more, or train a smaller model of your own (docs/sizing.md)."
    if not in_time:
        in_time, advice = [min(paid, key=lambda row: row[1])], "Give more hours."
    dollars, hours, row = min(in_time, key=lambda row: row[0])
    # A little more, because steps are whole, and up to cents.
    least = money(-(-1.03 * dollars / (1 - SPARE) * 100 // 1) / 100)
    return BadInput(
        f"{money_there} buys less than the smallest model, {smallest.name} of "
        f"{amount(params)} parameters: at {TOKENS_PER_PARAMETER} tokens for each it needs "
        f"{amount(tokens)} tokens, which cost {least} in {duration(3600 * hours)} on {row.offer}. "
        f"{advice}"
    )


def _unknown(row: Estimate) -> str:
    if any(stage.tokens is None for stage in row.stages):
        return "sft has epochs in place of steps, and how many steps they are is not known yet"
    return next((s.speed_from for s in row.stages if s.seconds is None), "its speed is unknown")
