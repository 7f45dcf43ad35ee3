"""How `pion chat` and `pion generate` sample text, and their options for it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pion.errors import BadInput
from pion.generation.bounds import BOUNDS
from pipeline.serve.options import add_loading

# How text is sampled: keywords of `pion.generate`.
Settings = Mapping[str, Any]
DEFAULTS: Settings = {
    "max_tokens": 128,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.9,
    "repetition_penalty": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
SAMPLING_HELP = {
    "max_tokens": "maximum length of an answer, in tokens",
    "temperature": "0 takes the most likely token; higher is more random",
    "top_k": "choose among this many of the most likely tokens; 0: all",
    "top_p": "choose among the most likely tokens that add up to this probability",
    "repetition_penalty": "values above 1 make tokens that were already used less likely",
    "min_p": "leave out tokens less likely than this share of the likeliest one's probability",
    "presence_penalty": "lowers the logits of tokens that the answer has used; 0: by nothing",
    "frequency_penalty": "lowers them by this for each time that they were used",
}


def convert(name: str, text: str) -> float:
    """Return the value that a user typed for a setting. Raises BadInput for an invalid value."""
    bounds = replace(BOUNDS[name], least=1) if name == "max_tokens" else BOUNDS[name]
    kind = int if name == "seed" else type(DEFAULTS[name])
    try:
        value: float = kind(text)
    except ValueError:
        value = math.nan
    if not bounds.has(value):
        kind_words = "a whole number, " if kind is int else ""
        raise BadInput(f"{name.replace('_', ' ')} must be {kind_words}{bounds}, not {text[:40]!r}")
    return value


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting, for the seed, and for loading the model."""
    for name, default in DEFAULTS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=partial(_converted, name),
            default=default,
            metavar="N",
            help=f"{SAMPLING_HELP[name]} (default: {default})",
        )
    parser.add_argument(
        "--seed",
        type=partial(_converted, "seed"),
        metavar="N",
        help="the same seed generates the same text",
    )
    add_loading(parser)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the options, as keywords of `pion.generate`."""
    return {name: getattr(args, name) for name in (*DEFAULTS, "seed")}


def _converted(name: str, text: str) -> float:
    try:
        return convert(name, text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None
