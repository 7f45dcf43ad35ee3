"""What drafts bring to the program (program_parts.py): an option, counts, and what they save."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pion.config.draft import MOST_STEPS, TEMPERATURES

if TYPE_CHECKING:
    from pion.generation.answer import Answer, Drawn
    from pion.model.decoder import Decoder
    from pipeline.models.find import FoundModel

# How many tokens are drafted for a step. auto: as many as the model's draft block has learned.
Drafts = int | Literal["auto", "off"]
WITHOUT_BLOCK = 4


def add_options(parser: argparse.ArgumentParser) -> None:
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
    if text.isdecimal() and 1 <= int(text[:9]) <= MOST_STEPS:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text[:40]!r} is not auto, off or a number from 1 to {MOST_STEPS}"
    )


def drafts_of(asked: Drafts, model: Decoder) -> int:
    """Return how many tokens are drafted for a step of a model; 0: none."""
    if isinstance(asked, int):
        return asked
    block = model.config.draft
    return 0 if asked == "off" else WITHOUT_BLOCK if block is None else block.steps


def load(model: Decoder, found: FoundModel, args: argparse.Namespace) -> Decoder:
    """Return a model that was loaded, with the drafts that the options ask for, if they have any.

    The draft block that was exported with the model is loaded too. Raises BadInput for a block that
    is damaged, or of another model.
    """
    from pion.formats.draft_folder import with_draft
    from pion.generation.drafts import with_drafts

    asked: Drafts = getattr(args, "drafts", "off")
    if asked != "off" and found.kind == "export" and found.base is None:
        model = with_draft(model, found.folder)
    return with_drafts(model, drafts_of(asked, model))


def timings(answers: Sequence[Answer], drawn: Sequence[Sequence[Drawn]]) -> dict[str, int]:
    """Return what llama.cpp names of drafts: `draft_n` tokens of answers were guessed,
    `draft_n_accepted` of them right. `drawn` are the tokens of each answer.

    An answer that ends at a stop string may have been drawn further, and its first token is never
    guessed.
    """
    counts = [answer.text.counts for answer in answers]
    right = (min(of["accepted"], max(0, len(tokens) - 1)) for of, tokens in zip(counts, drawn))
    return {"draft_n": sum(of["drafted"] for of in counts), "draft_n_accepted": sum(right)}


def usage(timings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what OpenAI names of drafts, from the timings; nothing if none was guessed."""
    details = {
        "accepted_prediction_tokens": timings["draft_n_accepted"],
        "rejected_prediction_tokens": timings["draft_n"] - timings["draft_n_accepted"],
    }
    return {"completion_tokens_details": details} if timings["draft_n"] else {}


def measured(
    model: Decoder,
    beginnings: Sequence[Sequence[int]],
    vocab_size: int,
    on_pass: Callable[[], None],
) -> dict[str, Any]:
    """Return what the draft block of a model saves after the beginnings of texts."""
    from pion.evaluation.drafting import drafted

    return {
        name: found
        for name, temperature in TEMPERATURES.items()
        if (found := drafted(model, beginnings, temperature, vocab_size, on_pass)) is not None
    }
