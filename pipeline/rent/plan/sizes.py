"""The models among which money can choose, each with a job, and their settings by rule."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pion.config.presets import PRESETS
from pion.errors import BadInput
from pion.model.params_and_flops import ModelCost, cost_of
from pipeline.base.job_with_base import read_job
from pipeline.job import Job
from pipeline.job.stages import CONVERSING
from pipeline.job.train_sections import three_digits
from pipeline.machine.own_files import own_names
from pipeline.rent.plan.speeds import NOTHING_KNOWN, Known

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
