"""The option `--drafts`: how many tokens are guessed for a step."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Literal

from pion.generation.bounds import MOST_DRAFTS

if TYPE_CHECKING:
    from pion.model.decoder import Decoder

# How many tokens are drafted for a step. auto: as many as the model's draft block has learned.
Drafts = int | Literal["auto", "off"]
WITHOUT_BLOCK = 4


def add_drafts(parser: argparse.ArgumentParser) -> None:
    """Add how many tokens are drafted for a step."""
    parser.add_argument(
        "--drafts",
        type=_number_of_drafts,
        metavar="N",
        default="off",
        help="guess up to N tokens for each step, by what the text repeats and by the model's "
        "draft block if it has one; the text is the same up to rounding, and faster where guesses "
        f"are right. auto: as many as the block has learned, or {WITHOUT_BLOCK} without one; off "
        "(the default): none",
    )


def _number_of_drafts(text: str) -> Drafts:
    if text in ("auto", "off"):
        return text  # type: ignore[return-value]
    if text.isdecimal() and 1 <= int(text[:9]) <= MOST_DRAFTS:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text[:40]!r} is not auto, off or a number from 1 to {MOST_DRAFTS}"
    )


def drafts_of(asked: Drafts, model: Decoder) -> int:
    """Return how many tokens are drafted for a step of a model; 0: none."""
    if isinstance(asked, int):
        return asked
    block = model.config.draft
    return 0 if asked == "off" else WITHOUT_BLOCK if block is None else block.steps
