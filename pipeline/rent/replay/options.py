"""The options of `pion replay` that replace measured or assumed numbers, and the deadline."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.commands.arguments import BENCH

HELP = {
    "gpu": "the GPU type; sets the price, and without --step-seconds also the speed",
    "step_seconds": "seconds per step in the first training stage; for later stages, this time is "
    "scaled by their tokens per step",
    "boot_seconds": "seconds from the start of billing until the restore starts",
    "restore_seconds": "seconds from the start of the restore until the first step",
    "stall_seconds": "seconds for which a save stops training",
    "write_seconds": "seconds from when training continues until the save is committed",
    "upload_mb_per_second": "upload speed, to compute --write-seconds from a checkpoint's size",
    "warning_seconds": "seconds of notice before a machine is lost; if a minute or more, training "
    "continues in it, as in a run; default: no notice",
    "price": "dollars per hour on spot",
    "on_demand_price": "dollars per hour on demand",
    "deadline": "also replay a deadline, as hours from the start (42h) or times the training "
    "(1.5x), and compare ways to meet it",
}
# The other options are numbers.
WORDS = {"gpu": "NAME", "deadline": "TIME"}


@dataclass(frozen=True)
class Number:
    """A value and where it comes from."""

    value: float
    origin: str


# No amount is larger: a step of this many seconds takes 11 days.
MOST = 1e6


@dataclass(frozen=True)
class Given:
    """The options that were given (see HELP); None if an option was not given.

    `bench` names results of `pion bench`.
    """

    gpu: str | None = None
    step_seconds: float | None = None
    boot_seconds: float | None = None
    restore_seconds: float | None = None
    stall_seconds: float | None = None
    write_seconds: float | None = None
    upload_mb_per_second: float | None = None
    warning_seconds: float | None = None
    price: float | None = None
    on_demand_price: float | None = None
    deadline: str | None = None
    bench: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: argparse.Namespace) -> Given:
        """Return the parsed options of `add_options`."""
        return cls(**{name: getattr(args, name) for name in HELP}, bench=tuple(args.bench))

    def number(self, name: str) -> Number | None:
        """Return the given value of `name`; None if it was not given."""
        value = getattr(self, name)
        return None if value is None else Number(value, option(name))

    def check(self) -> None:
        """Raise BadInput for an invalid amount."""
        numbers = {name: getattr(self, name) for name in HELP if name not in WORDS}
        for name, value in numbers.items():
            if value is None:
                continue
            if value > MOST:
                raise BadInput(f"{option(name)} is {value:g}; it must be at most {MOST:g}.")
            above = name in ("step_seconds", "upload_mb_per_second")
            if not math.isfinite(value) or value < 0 or (above and value == 0):
                needed = "above 0" if above else "0 or more"
                raise BadInput(f"{option(name)} is {value:g}; it must be {needed}.")


def option(name: str) -> str:
    """Return the name of the option for a field of `Given`."""
    return f"--{name.replace('_', '-')}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `Given`."""
    for name, words in HELP.items():
        kind = str if name in WORDS else float
        parser.add_argument(option(name), metavar=WORDS.get(name, "N"), type=kind, help=words)
    BENCH(parser)
