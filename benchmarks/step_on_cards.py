"""Estimate how much of a step on eight cards Muon takes, replicated and divided by ownership.

    uv run python -m benchmarks.step_on_cards

NOTHING RUNS ON A GPU. All numbers are estimates, by the formulas and link speeds of `pion plan`
(pipeline/rent/plan/step_seconds.py, links.py). A step has 64 × 2,048 tokens, in bf16.

*Replicated* is Pion before the optimizer was divided: every card updates all matrices. *Divided*:
each matrix is updated whole by one card, and the others gather the update. The share of Muon does
not depend on how fast a card computes, only on what the links add to a step. So each model is
estimated at the MFU that the plan assumes, and at one that a well-fed card reaches.

Writes benchmarks/results/step_on_cards.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pion.config.model_config import ModelConfig
from pion.train.hardware import gpu_flops
from pion.train.memory import Workload
from pion.train.micro_batch import choose_micro_batch
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.links import link_of
from pipeline.rent.plan.speeds import ASSUMED_MFU
from pipeline.rent.plan.step_seconds import StepWork, step_seconds
from pipeline.rent.plan.step_work import step_work

RESULT = Path(__file__).parent / "results" / "step_on_cards.json"
PRESETS = ("pion-small", "pion-large", "pion-xl")
GPUS = ("A40", "H100-SXM")
CARDS, GLOBAL_BATCH, SEQ_LEN = 8, 64, 2048
MFUS = (ASSUMED_MFU, 0.45)
NOTE = "estimates: nothing ran on a GPU"


@dataclass(frozen=True)
class Row:
    """A model on eight cards. All numbers are estimates."""

    model: str
    gpu: str
    mfu: float
    gb_per_second: float
    step_seconds: float  # with the update divided
    muon_share_replicated: float  # of a step
    muon_share_divided: float
    muon_and_gather_share_divided: float
    muon_to_training_replicated: (
        float  # Muon's FLOPs over those of both passes, on the busiest card
    )
    muon_to_training_divided: float
    muon_seconds: float  # divided, on the busiest card
    gather_seconds: float
    sum_seconds_not_hidden: float


def work_of(preset: str, gpu: str) -> StepWork:
    """Return a step of a preset with Muon, in the micro-batches that Pion chooses."""
    kind = GPU_TYPES[gpu]
    work = Workload(
        ModelConfig.preset(preset),
        SEQ_LEN,
        "bfloat16",
        "muon",
        "cuda",
        documents=False,
        compile=True,
        capability=kind.capability,
    )
    rows, recompute = choose_micro_batch(
        work, rows_per_rank=GLOBAL_BATCH // CARDS, memory_bytes=kind.memory
    )
    return step_work(work, GLOBAL_BATCH, rows, recompute=recompute)


def estimate(preset: str, gpu: str, mfu: float) -> Row:
    """Return a preset's step on eight cards that reach this MFU with and without Muon."""
    peak = gpu_flops(GPU_TYPES[gpu].cuda, "bfloat16")
    assert peak is not None
    work, link = work_of(preset, gpu), link_of(gpu)
    every, own = (
        step_seconds(
            work,
            CARDS,
            flops_per_second=mfu * peak,
            bytes_per_second=link.bytes_per_second,
            sharded=sharded,
        )
        for sharded in (False, True)
    )
    return Row(
        model=preset,
        gpu=gpu,
        mfu=mfu,
        gb_per_second=link.gb_per_second,
        step_seconds=round(own.seconds, 4),
        muon_share_replicated=round(every.muon_share, 4),
        muon_share_divided=round(own.muon_share, 4),
        muon_and_gather_share_divided=round((own.muon + own.gathering) / own.seconds, 4),
        muon_to_training_replicated=round(every.muon / every.computing, 4),
        muon_to_training_divided=round(own.muon / own.computing, 4),
        muon_seconds=round(own.muon, 4),
        gather_seconds=round(own.gathering, 4),
        sum_seconds_not_hidden=round(own.summing, 4),
    )


def estimates() -> list[Row]:
    """Return all rows."""
    return [estimate(preset, gpu, mfu) for gpu in GPUS for mfu in MFUS for preset in PRESETS]


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| 8 cards | model | MFU | a step | Muon, replicated | Muon, divided | gather | Muon and "
        "gather | sum, not hidden |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.gpu} | `{row.model}` | {row.mfu:.0%} | {row.step_seconds:.3f} s "
        f"| {row.muon_share_replicated:.1%} | {row.muon_share_divided:.1%} "
        f"| {row.gather_seconds:.4f} s | {row.muon_and_gather_share_divided:.1%} "
        f"| {row.sum_seconds_not_hidden:.4f} s |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    rows = estimates()
    report = {
        "note": NOTE,
        "step": f"{GLOBAL_BATCH} rows of {SEQ_LEN} tokens on {CARDS} cards, bf16, Muon",
        "rows": [row.__dict__ for row in rows],
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(NOTE)
    print(table(rows))


if __name__ == "__main__":
    main()
