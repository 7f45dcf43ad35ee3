"""The options of `pion serve`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pion.generation.bounds import MOST_DRAFTS
from pipeline.web.address import Address, add_address, address_of

if TYPE_CHECKING:
    from pion.model.decoder import Decoder

# How many tokens are drafted for a step. auto: as many as the model's draft block has learned.
Drafts = int | Literal["auto", "off"]
WITHOUT_BLOCK = 4


@dataclass(frozen=True)
class Options:
    """The command line of `pion serve`.

    Attributes:
        models: names of models, NAME=MODEL to give one another name; none: the latest run.
        slots: the most answers that are written at once, of each model.
        queue: how many more requests may wait, for each model.
        seq_len: the most tokens of prompt and answer; None: the model's context.
        dtype: the precision of weights and products.
        ignore_tools: answer requests that offer tools, without the tools.
        drafts: how many tokens are drafted for a step.
    """

    models: Sequence[str]
    address: Address
    slots: int = 16
    queue: int = 64
    seq_len: int | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    ignore_tools: bool = False
    drafts: Drafts = "off"


def add_options(parser: argparse.ArgumentParser, model_help: str) -> None:
    """Add the options of `pion serve`; `model_help` says in words what a MODEL can be."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help=f"{model_help}. Requests call it by this name, or by NAME with NAME=MODEL",
    )
    add_address(parser, 8000)
    parser.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let pages of this website use the API from a browser (CORS), as "
        "http://localhost:3000; may be given several times (default: no other website may)",
    )
    parser.add_argument(
        "--ignore-tools",
        action="store_true",
        help="answer requests that offer tools (functions) with text, as if they offered none; "
        "some front ends offer tools with each request (default: such requests are refused)",
    )
    numbers = {
        "slots": "answers that are written at once, of each model; fewer if memory is short",
        "queue": "requests that may wait for a slot; more are refused with status 429",
    }
    for name, meaning in numbers.items():
        default = getattr(Options, name)
        parser.add_argument(
            f"--{name}", type=int, metavar="N", default=default, help=f"{meaning} ({default})"
        )
    parser.add_argument(
        "--seq-len",
        type=int,
        metavar="N",
        help="the most tokens of prompt and answer; default: the model's context",
    )
    add_dtype(parser)
    add_drafts(parser)


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
    usual = WITHOUT_BLOCK if block is None else block.steps
    return usual if asked == "auto" else 0


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add the precision of a model that is used, and not trained."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="precision of weights and products; auto (the default): bfloat16 if the hardware "
        "computes it, which is faster and rounds more",
    )


def options_of(args: argparse.Namespace) -> Options:
    """Return the parsed options of `add_options`."""
    return Options(
        args.models,
        replace(address_of(args), origins=tuple(args.allow_origin)),
        args.slots,
        args.queue,
        args.seq_len,
        args.dtype,
        args.ignore_tools,
        args.drafts,
    )
