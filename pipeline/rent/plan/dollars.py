"""What to train for so many dollars: for each card the model, its tokens, batch and rates.

The models are a job's own and the presets of its family. The largest that gets
TOKENS_PER_PARAMETER is taken. All money is spent on tokens, but for a share that other work takes.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from pion.config.presets import PRESETS
from pion.errors import BadInput
from pion.model.params_and_flops import ModelCost, cost_of
from pipeline.base.job_with_base import read_job
from pipeline.console.formats import amount, duration, money
from pipeline.job import Job
from pipeline.job.section import DOLLARS, HOURS, made
from pipeline.job.stages import CONVERSING
from pipeline.job.train_sections import three_digits
from pipeline.machine.own_files import own_names
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.speeds import NOTHING_KNOWN, Known

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


# ---------------------------------------------------------------- models to choose from

# The family that is used without a job: the first that has jobs in this folder.
_MAX = "pion2-max"
FAMILIES = (_MAX, "pion2", "pion")
# That of a job whose model has no preset. It has what a model has by default: no wiring, no tables.
_OF_OWN_MODELS = "pion2"
JOBS = Path("jobs")
# What makes a model larger. All other fields of a job's model hold for each size.
_SHAPE = ("preset", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "values")
# An override is one line.
_WIDTH = 10**6


@dataclass(frozen=True)
class Size:
    """A model, and the job that trains it: the file, and the overrides that make it this model.

    The batch and rates of `reference` are good for the size and length of that job. `known` are
    the speeds that are known of the model.
    """

    name: str
    job: Job
    reference: Job
    path: str
    overrides: tuple[str, ...]
    cost: ModelCost
    known: Known = NOTHING_KNOWN


def sizes_of(path: str | None, overrides: Sequence[str]) -> list[Size]:
    """Return the models that a job can train, the smallest first.

    With `path`, they are the presets of the family of the job's model, or of Pion 2, and the job's
    own model. Without, each preset has the job of its name in `jobs/`. Raises BadInput for a job
    that can't be read or does not pretrain, and if there is none.
    """
    sizes = _of_folder(overrides) if path is None else _of_job(path, overrides)
    return sorted(sizes, key=lambda size: size.cost.all_params)


def _of_folder(overrides: Sequence[str]) -> list[Size]:
    """Return the presets of the first family with jobs in `jobs/`, each with its own job; where
    there are none, those of the first family of Pion's own jobs."""
    in_folder = {file.stem for file in JOBS.glob("*.yaml")}
    choices = [(presets_of(family), in_folder) for family in FAMILIES]
    choices.append((presets_of(_MAX), set(own_names("jobs"))))
    of_families = ([name for name in presets if name in jobs] for presets, jobs in choices)
    names = next(filter(None, of_families))
    return [_size(name, str(JOBS / f"{name}.yaml"), overrides) for name in names]


def _of_job(path: str, overrides: Sequence[str]) -> list[Size]:
    """Return the job's own model, and the presets with its other fields."""
    job = read_job(path, overrides)
    if job.pretrain is None or job.model.base is not None:
        raise BadInput(
            f"{path} does not pretrain a model from random weights, so its size can't be chosen "
            f"by money. `pion plan {path}` says what it costs."
        )
    preset = job.model.preset
    similar = preset or _OF_OWN_MODELS
    names = presets_of(_MAX if similar.startswith(f"{_MAX}-") else similar.split("-")[0])
    mine = _size(preset or f"the model of {Path(path).name}", path, overrides)
    others = [
        _size(other, path, [*overrides, _as_preset(job, other)], mine.job)
        for other in names
        if other != preset
    ]
    return [mine, *others]


def presets_of(family: str) -> list[str]:
    """Return the names of a family's presets: `daisy-pico`, and not `daisy-pico-tied`."""
    return [name for name in PRESETS if re.fullmatch(rf"{re.escape(family)}-[a-z0-9.]+", name)]


def _as_preset(job: Job, preset: str) -> str:
    """Return the override that gives the job another preset, with the job's other fields and its
    vocabulary."""
    fields = job.model.model_dump(exclude_unset=True, exclude=set(_SHAPE))
    config = job.model_config_resolved()
    used = {"vocab_size": config.vocab_size, "seq_len": config.seq_len}
    fields |= {name: value for name, value in used.items() if PRESETS[preset][name] != value}
    section = {"preset": preset, **fields}
    text = yaml.safe_dump(section, default_flow_style=True, width=_WIDTH) if fields else preset
    return f"model={text.strip()}"


def _size(name: str, path: str, overrides: Sequence[str], reference: Job | None = None) -> Size:
    job = read_job(path, overrides)
    if reference is not None:  # what is learned of the rows of one is known of the other
        job = job.model_copy(update={stage: getattr(reference, stage) for stage in CONVERSING})
    cost = cost_of(job.model_config_resolved())
    return Size(name, job, reference or job, path, tuple(overrides), cost)


# ---------------------------------------------------------------- by rule

# The batch and the rates of a run that is larger or longer than its job says. The job's own batch
# and rates are taken to be good for its own size and length. From there,
#
#     batch ∝ tokens^0.383 (Bergsma et al. 2025, arXiv 2505.13738, and nanochat's settings),
#     all rates ∝ √batch, but at most twice or half as large, and AdamW's rates also ∝ d_model^-½.


BATCH_POWER = 0.383
# A batch is rounded to so many significant binary digits, so that it splits into equal parts.
_DIGITS = 3
# Those of AdamW, and that of Muon.
_ADAMW = ("lr", "min_lr", "embedding_lr", "head_lr", "vector_lr")
# By how much a batch changes the rates at most. Nobody has tried the rule over a wider range.
_MOST = 2.0
# The largest share of the steps that the warm-up takes.
_WARMUP = 0.1


def settings_by_rule(job: Job, d_model: int, tokens: float) -> dict[str, int | float]:
    """Return the fields of `pretrain` that train a model of this width on about so many tokens:
    steps, batch, rates and, if it has to be shorter, the warm-up."""
    train = job.section("pretrain")
    of_job = train.total_steps * train.global_batch * job.data.seq_len
    batch = round_batch(train.global_batch * (tokens / of_job) ** BATCH_POWER)
    steps = max(1, int(tokens / (batch * job.data.seq_len)))
    by_batch = min(max(math.sqrt(batch / train.global_batch), 1 / _MOST), _MOST)
    by_width = (d_model / job.model_config_resolved().d_model) ** -0.5
    factors = dict.fromkeys(_ADAMW, by_batch * by_width)
    if train.optimizer == "muon":
        factors["muon_lr"] = by_batch
    rates = {name: getattr(train, name) for name in factors}
    settings: dict[str, int | float] = {"steps": steps, "global_batch": batch}
    settings |= {n: three_digits(r * factors[n]) for n, r in rates.items() if r is not None}
    warmup = min(train.total_warmup_steps, int(_WARMUP * steps))
    has_recipe = job.pretrain is not None and job.pretrain.recipe is not None
    if warmup != train.warmup_steps or has_recipe:  # a recipe's warm-up would follow the steps
        settings["warmup_steps"] = warmup
    return settings


def round_batch(batch: float) -> int:
    """Return the nearest batch with few binary digits: …, 28, 32, 40, 48, 56, 64, 80, …"""
    step = 2 ** max(0, math.floor(math.log2(max(batch, 1))) - (_DIGITS - 1))
    return max(1, round(batch / step) * step)


# ---------------------------------------------------------------- what the money buys


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
