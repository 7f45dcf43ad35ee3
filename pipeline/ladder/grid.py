"""The runs of a ladder: smaller copies of a job's model, each trained on fewer tokens, by rule.

A width is a share of the job's `d_model`. Depth, the feed-forward width and the number of heads
follow the width; heads keep their own width. A length is a share of the job's training tokens.
Batch and rates follow both by rule.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from pion.config.model_config import NUMBERED_LAYERS, ModelConfig
from pion.errors import BadInput
from pipeline.console.formats import short_amount
from pipeline.job import Job
from pipeline.job.job import without_questions
from pipeline.job.train_sections import three_digits
from pipeline.ladder.law import training_flops
from pipeline.ladder.runs import Run, Runs, as_overrides

WIDTHS = (0.25, 0.35, 0.5, 0.7)
LENGTHS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
# The bounds of what a person may ask for.
LEAST_WIDTH, MOST_WIDTH = 1 / 64, 4.0
LEAST_LENGTH, MOST_LENGTH = 1e-5, 10.0
MOST_RUNGS = 64
# What decides whether widths are multiples of 64, or of less in a small model.
_WIDEST_UNIT, _UNITS_IN_WIDTH = 64, 8


@dataclass(frozen=True)
class Rung(Run):
    """One run of a ladder.

    Attributes:
        shape: its model in words, such as 128x3.
        macs_per_token: multiply-accumulates of its model for one token.
        tokens: the tokens that it trains on.
        held_out: whether the fit leaves it out, to compare a prediction with its result.
    """

    shape: str
    macs_per_token: int
    tokens: int
    held_out: bool

    @property
    def flops(self) -> float:
        """The FLOPs of its training with the model's weights."""
        return training_flops(self.macs_per_token, self.tokens)


@dataclass(frozen=True)
class Grid:
    """What a person asks for: shares of the job's width and of its tokens.

    `beyond` has more runs, as pairs of shares, which the fit leaves out. So it does with the
    `held_out` largest runs of the grid.
    """

    widths: tuple[float, ...] = WIDTHS
    lengths: tuple[float, ...] = LENGTHS
    held_out: int = 0
    beyond: tuple[tuple[float, float], ...] = ()


def rungs_of(runs: Runs, grid: Grid) -> list[Rung]:
    """Return the runs of a ladder, those to fit before those held out, and the cheapest first of
    each.

    Raises BadInput for a job whose model can't be scaled, and for shares out of bounds or so close
    that two runs would be the same.
    """
    _require_pretrain(runs.job)
    _check(grid)
    pairs = list(itertools.product(grid.widths, grid.lengths))
    inside = sorted((_rung(runs, pair, held_out=False) for pair in pairs), key=_by_cost)
    kept = len(inside) - grid.held_out
    held = [_rung(runs, pair, held_out=True) for pair in grid.beyond]
    held += [replace(rung, held_out=True) for rung in inside[kept:]]
    rungs = [*inside[:kept], *sorted(held, key=_by_cost)]
    names = [rung.name for rung in rungs]
    twice = next((rung for rung in rungs if names.count(rung.name) > 1), None)
    if twice is not None:
        raise BadInput(
            f"two runs of the ladder would be the same: a model of {twice.shape} on "
            f"{short_amount(twice.tokens)} tokens. Sizes are rounded. Nothing was started. Give "
            "--widths and --tokens that are further apart."
        )
    return rungs


def _require_pretrain(job: Job) -> None:
    """Raise BadInput if there is no pretraining to scale."""
    if job.pretrain is None:
        raise BadInput(
            "the job has no `pretrain`: a ladder predicts pretraining. Nothing was started."
        )
    if job.model.base is not None:
        raise BadInput(
            "the job starts from a trained model, which can't be made smaller. A ladder trains "
            "from random weights: remove model.from. Nothing was started."
        )


def _check(grid: Grid) -> None:
    """Raise BadInput for a grid that is out of bounds."""
    widths = [*grid.widths, *(width for width, _ in grid.beyond)]
    lengths = [*grid.lengths, *(length for _, length in grid.beyond)]
    for name, values, least, most in (
        ("a width", widths, LEAST_WIDTH, MOST_WIDTH),
        ("tokens", lengths, LEAST_LENGTH, MOST_LENGTH),
    ):
        wrong = [value for value in values if not least <= value <= most]
        if wrong:
            raise BadInput(
                f"{name} of {wrong[0]:g}: give a share of the job's own, from {least:g} to "
                f"{most:g}. Nothing was started."
            )
    count = len(grid.widths) * len(grid.lengths)
    if count + len(grid.beyond) > MOST_RUNGS:
        raise BadInput(
            f"{count + len(grid.beyond)} runs are more than the {MOST_RUNGS} of a ladder. Nothing "
            "was started. Give fewer --widths or --tokens."
        )
    if not 0 <= grid.held_out < count:
        raise BadInput(
            f"--hold-out {grid.held_out}: the grid has {count} runs, and some must be left to "
            "fit. Nothing was started."
        )


def _rung(runs: Runs, pair: tuple[float, float], *, held_out: bool) -> Rung:
    from pion.model.params_and_flops import cost_of

    job, (width, length) = runs.job, pair
    config = job.model_config_resolved()
    model = _model_changes(config, width)
    training = _training_changes(job, model["model.d_model"], length)
    tokens = training["pretrain.steps"] * training["pretrain.global_batch"] * job.data.seq_len
    shape = f"{model['model.d_model']}x{model.get('model.n_layers', config.n_layers)}"
    name = {"name": f"{job.name}-ladder-{shape}-{short_amount(tokens)}"}
    run = runs.of(as_overrides({**name, **model, **training, **_only_pretraining(job)}))
    return Rung(
        **vars(run),
        shape=shape,
        macs_per_token=cost_of(run.job.model_config_resolved()).macs_per_token,
        tokens=tokens,
        held_out=held_out,
    )


def _by_cost(rung: Rung) -> tuple[float, str]:
    return rung.flops, rung.name


def _model_changes(config: ModelConfig, width: float) -> dict[str, Any]:
    """Return the shape of a model of that share of the width."""
    unit = _unit(config.d_model)
    d_model = _rounded(width * config.d_model, unit)
    share = d_model / config.d_model
    heads = max(1, round(share * config.n_heads))
    most_kv = max(1.0, heads * config.n_kv_heads / config.n_heads)
    changes = {
        "model.d_model": d_model,
        "model.n_heads": heads,
        "model.n_kv_heads": max(n for n in range(1, heads + 1) if heads % n == 0 and n <= most_kv),
        "model.head_dim": config.head_dim,
        "model.d_ff": _rounded(share * config.d_ff, unit),
    }
    if not _names_layers(config):
        changes["model.n_layers"] = max(1, round(share * config.n_layers))
    if config.experts is not None and config.experts.d_shared:
        changes["model.experts.d_shared"] = _rounded(share * config.experts.d_shared, unit)
    return changes


def _unit(d_model: int) -> int:
    """Return the number of which widths are multiples: a power of two."""
    unit = _WIDEST_UNIT
    while unit > 2 and unit * _UNITS_IN_WIDTH > d_model:
        unit //= 2
    return unit


def _rounded(value: float, unit: int) -> int:
    return max(1, round(value / unit)) * unit


def _names_layers(config: ModelConfig) -> bool:
    """Return whether a part of the model names some of its layers, so that their number stays."""
    return any(
        getattr(getattr(config, part), field)
        for part, fields in NUMBERED_LAYERS.items()
        for field in fields
        if getattr(config, part) is not None
    )


def _training_changes(job: Job, d_model: int, length: float) -> dict[str, Any]:
    """Return steps, batch, warm-up and rates for a width and a share of the tokens."""
    pretrain = job.section("pretrain")
    tokens = length * pretrain.total_steps * pretrain.global_batch * job.data.seq_len
    settings = settings_by_rule(job, d_model, tokens)
    return {f"pretrain.{name}": value for name, value in settings.items()}


def _only_pretraining(job: Job) -> dict[str, Any]:
    """Return what leaves out of a job all but pretraining and its held-out loss."""
    return {
        "sft": None,
        "prefer": None,
        "reinforce": None,
        "publish": None,
        "deadline": None,
        "evaluate.every": None,
        "evaluate.prompts": [],
        "evaluate.ngram_order": 0,
        "evaluate.continuations": 0,
        **without_questions(job),
        "evaluate.checkpoint": "last",
    }


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
    own_tokens = train.total_steps * train.global_batch * job.data.seq_len
    batch = round_batch(train.global_batch * (tokens / own_tokens) ** BATCH_POWER)
    steps = max(1, int(tokens / (batch * job.data.seq_len)))
    by_batch = min(max(math.sqrt(batch / train.global_batch), 1 / _MOST), _MOST)
    by_width = (d_model / job.model_config_resolved().d_model) ** -0.5
    settings: dict[str, int | float] = {"steps": steps, "global_batch": batch}
    given = {name: getattr(train, name) for name in _ADAMW}
    settings |= {
        name: three_digits(rate * by_batch * by_width)
        for name, rate in given.items()
        if rate is not None
    }
    if train.optimizer == "muon":
        settings["muon_lr"] = three_digits(train.muon_lr * by_batch)
    warmup = min(train.total_warmup_steps, int(_WARMUP * steps))
    named = job.pretrain is not None and job.pretrain.recipe is not None
    if warmup != train.warmup_steps or named:  # a recipe's warm-up would follow the steps
        settings["warmup_steps"] = warmup
    return settings


def round_batch(batch: float) -> int:
    """Return the nearest batch with few binary digits: …, 28, 32, 40, 48, 56, 64, 80, …"""
    step = 2 ** max(0, math.floor(math.log2(max(batch, 1))) - (_DIGITS - 1))
    return max(1, round(batch / step) * step)
