"""Train the settings of some grids once, and record their held-out loss at the steps where a search
would pause them. benchmarks/halving.py replays searches on these curves.

The model is the smallest of benchmarks/recipes.py, on the prose and the source of Python's standard
library, in bf16. A loss is that of the
rows that a search looks at, measured as a run measures it while it trains.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.paired_training import rows_of, score, trainer_of
from benchmarks.recipe_arms import JOB, SIZES, muon
from pion.data.tokens.tokenizer import Tokenizer
from pion.model.decoder import Decoder
from pipeline.data.prepared import PreparedData, open_data
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.ladder.halving import Curves
from pipeline.ladder.vary import Setting, settings_of
from pipeline.stages.prepare import prepare_pretrain

STEPS = 64
SHAPE = dict(zip(("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff"), SIZES["xs"]))
# Such a small model wants a larger rate of AdamW than the demo's 5e-3.
FIELDS = {"steps": STEPS, "lr": 1.5e-2} | dict(muon(0.02).training(SHAPE["d_model"], STEPS))
TEXT = ["data.sources=[{kind: python-docs, code: true}]", "sft=null", "evaluate.final_rows=400"]
SMALL = [
    *TEXT,
    *(f"model.{name}={value}" for name, value in SHAPE.items()),
    *(f"pretrain.{name}={value}" for name, value in FIELDS.items()),
]
# The texts of --vary. The grids share some trainings.
GRIDS = {
    "muon_lr": ("pretrain.muon_lr=0.0025,0.005,0.01,0.02,0.04,0.08",),
    "muon_lr and lr": ("pretrain.muon_lr=0.01,0.02,0.04", "pretrain.lr=1.5e-2,4e-2"),
}
DTYPE: Literal["bfloat16"] = "bfloat16"
# By the name of a training, the held-out loss by step, in nats per token.
Runs = dict[str, dict[str, float]]


def job_of(setting: Setting) -> Job:
    """Return the job of a setting."""
    return load_job(JOB, [*SMALL, *setting.overrides])


def key_of(job: Job, seed: int) -> str:
    """Return the name of a training. Two grids may have the same."""
    section = job.section("pretrain")
    return f"muon_lr {section.muon_lr:g}, lr {section.lr:g}, seed {seed}"


def missing(runs: Runs, seeds: int, measured: Sequence[int]) -> list[tuple[Job, int]]:
    """Return the job and the seed of each training that is not measured at all these steps."""
    wanted = {str(step) for step in measured}
    settings = [setting for varied in GRIDS.values() for setting in settings_of(varied)]
    jobs = {key_of(job, 0): job for job in map(job_of, settings)}
    every = [(job, seed) for seed in range(seeds) for job in jobs.values()]
    return [
        (job, seed) for job, seed in every if not wanted <= runs.get(key_of(job, seed), {}).keys()
    ]


def trained(
    todo: Sequence[tuple[Job, int]], measured: Sequence[int]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Train jobs, one after the other; yield the name of each, and its loss at these steps."""
    with tempfile.TemporaryDirectory() as folder:
        data = _prepared(Path(folder))
        for job, seed in todo:
            yield key_of(job, seed), _train(job, seed, data, measured)


def _train(job: Job, seed: int, data: PreparedData, measured: Sequence[int]) -> dict[str, float]:
    trainer = trainer_of(job, job.model_config_resolved(), seed, data, DTYPE)
    rows, tokenizer = rows_of(job, seed, data, "held_out"), Tokenizer.from_file(data.tokenizer_path)
    first, at_once = range(min(job.evaluate.rows, rows.total_rows)), trainer.plan.micro_batch
    losses = {}
    for step in range(1, STEPS + 1):
        trainer.train_step()
        if step in measured:
            ids = tokenizer.end_of_text, tokenizer.vocab_size
            losses[str(step)] = round(trainer.evaluate(rows, first, at_once, *ids).loss, 5)
    trainer.close()
    return losses


def bits_per_byte_of_a_nat() -> float:
    """Return the bits per byte of a loss of 1 nat per token, on the rows that are measured."""
    job = job_of(Setting(()))
    with tempfile.TemporaryDirectory() as folder:
        data = _prepared(Path(folder))
        rows = rows_of(job, job.seed, data, "held_out")
        model = Decoder(job.model_config_resolved())
        count = min(job.evaluate.rows, rows.total_rows)
        scored = score(model, rows, count, data.tokenizer_path)
    return scored.tokens / scored.bytes / math.log(2)


def _prepared(folder: Path) -> PreparedData:
    prepare_pretrain(job_of(Setting(())), folder, lambda message: None)
    return open_data(folder)


def finished_seeds(runs: Runs, measured: Sequence[int]) -> list[int]:
    """Return the seeds with which all settings of all grids are trained."""
    known = {int(key.rpartition(" ")[2]) for key in runs}
    lacking = {seed for _, seed in missing(runs, max(known) + 1, measured)}
    return sorted(known - lacking)


def curves_of(grid: str, runs: Runs, seeds: Sequence[int]) -> Curves:
    """Return the curves of a grid as a search has them."""
    jobs = {setting.name: job_of(setting) for setting in settings_of(GRIDS[grid])}
    return {
        name: {
            seed: {int(step): loss for step, loss in runs[key_of(job, seed)].items()}
            for seed in seeds
        }
        for name, job in jobs.items()
    }
