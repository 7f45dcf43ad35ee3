"""The job file: the phases of a training stage, and what pretraining reads in each of them.

A changed default or a new field moves digests: see train_sections.py.
"""

from __future__ import annotations

from typing import Literal

from pion.config.part_fields import FACTOR, LAYERS, SEQ_LEN, WIDTH
from pipeline.job.section import STEPS, Section, scheduled


class Phase(Section):
    """A part of the stage with its own rates, recipe sizes and trained bands."""

    until: float | int | Literal["decay"] | None = scheduled(
        None,
        "where the phase ends: a share of the steps, such as 0.2, a number of steps, such as 3000, "
        "or decay, where the learning rate begins to fall; the last phase has none",
        most=STEPS,
    )
    rates: dict[str, float] = scheduled(
        {},
        "factors of the learning rates by role (matrix, router, embedding, head, primitive, "
        "recipe, gate, vector), and by `others` for all other roles; 0 freezes a role",
        most=FACTOR,
    )
    top_k: int | None = scheduled(
        None, "primitives in a recipe; unset: the model's", gt=0, most=4096
    )
    rank: int | None = scheduled(
        None, "ranks of each primitive in use; unset: all", gt=0, most=WIDTH
    )
    unfreeze: list[int] | None = scheduled(
        None,
        "the only bands whose layers and banks are trained, counted from 0; unset: all",
        most=LAYERS,
    )


class PretrainPhase(Phase):
    """A part of pretraining with its own mix of the sources, length of rows, or rates."""

    mix: dict[str, float | str] | None = scheduled(
        None,
        "what the rows are read from, by the names of sources: {web: 9, code: 1} are shares, and "
        "4x reads a source 4 times in this phase. A source that is not named is not read; unset: "
        "as before (`pion help phases`)",
        before=None,
        most=10**9,
    )
    seq_len: int | None = scheduled(
        None,
        "tokens in a row: a multiple of data.seq_len; unset: as before, at first data.seq_len",
        before=None,
        gt=0,
        most=SEQ_LEN,
    )
    rope_theta: float | None = scheduled(
        None,
        "base of the angles of rotary positions; unset: as before, at first the model's",
        before=None,
        gt=0,
        most=10**12,
    )
    order: int = scheduled(
        0,
        "another number reads the same rows in another order",
        before=0,
        ge=0,
        most=10**6,
    )
