"""The options of `pion serve`, and those of loading a model to generate text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.models.program_parts import PROGRAM_PARTS
from pipeline.web.address import Address, add_address, address_of

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.model.decoder import Decoder
    from pipeline.models.find import FoundModel


@dataclass(frozen=True)
class Options:
    """The command line of `pion serve`.

    Attributes:
        models: names of models, NAME=MODEL to give one another name; none: the latest run.
        slots: the most answers that are written at once, of each model.
        queue: how many more requests may wait, for each model.
        seq_len: the most tokens of prompt and answer; None: the model's context.
        loading: how each model is loaded, the options of `add_loading`.
        ignore_tools: answer requests that offer tools, without the tools.
    """

    models: Sequence[str]
    address: Address
    loading: argparse.Namespace
    slots: int = 16
    queue: int = 64
    seq_len: int | None = None
    ignore_tools: bool = False


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
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add how a model is loaded to generate text; see `load_as_asked`."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="precision of weights and products; auto (the default): bfloat16 if the hardware "
        "computes it, which is faster and rounds more",
    )
    for part in PROGRAM_PARTS.values():
        part.add_options(parser)


def load_as_asked(
    found: FoundModel, asked: argparse.Namespace, skip_above: float | None = None
) -> tuple[Decoder, ChatFormat]:
    """Load a model, on the accelerator if there is one, and its chat format.

    `asked` has the options of `add_loading`; `skip_above` as in `Decoder.with_gates`, None: no
    gates.
    """
    from pion.train.hardware import pick_device, pick_dtype, torch_dtype
    from pipeline.models.load import load_found

    device = pick_device()
    model, chat_format = load_found(
        found, torch_dtype(pick_dtype(asked.dtype, device, generating=True))
    )
    for part in PROGRAM_PARTS.values():
        model = part.load(model, found, asked)
    gated = model if skip_above is None else model.with_gates(skip_above)
    return gated.to(device), chat_format


def options_of(args: argparse.Namespace) -> Options:
    """Return the parsed options of `add_options`."""
    return Options(
        args.models,
        replace(address_of(args), origins=tuple(args.allow_origin)),
        args,
        args.slots,
        args.queue,
        args.seq_len,
        args.ignore_tools,
    )
