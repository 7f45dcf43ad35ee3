"""How commands and their arguments are described to `pion`'s parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from operator import methodcaller
from typing import Any, Protocol

# Returns the exit code; None is 0.
Command = Callable[[argparse.Namespace], int | None]
# Adds an argument, or several, to the parser of a command.
Argument = Callable[[Any], object]


class Add(Protocol):
    """A function that makes the parser of a command, with its arguments in this order.

    The arguments are only added to the parser of the command that was given.
    A command with `overrides` takes key=value arguments, before and after its options.
    """

    def __call__(
        self,
        name: str,
        command: Command,
        help: str,
        *arguments: Argument,
        overrides: bool = False,
    ) -> None: ...


def argument(*names: str, **settings: Any) -> Argument:
    """Return an argument, described as `ArgumentParser.add_argument` expects."""
    return methodcaller("add_argument", *names, **settings)


def flag(name: str, help: str) -> Argument:
    """Return an option without a value."""
    return argument(name, action="store_true", help=help)


def one_of(*arguments: Argument) -> Argument:
    """Return options of which a command line can have only one."""

    def add(parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group()
        for argument in arguments:
            argument(group)

    return add


JSON = flag("--json", "print JSON")
BENCH = argument(
    "--bench",
    metavar="FILE",
    action="append",
    default=[],
    help="a result of `pion bench` on the GPU, for its speed; may be repeated. The results in "
    "~/.cache/pion/bench are always used",
)


def add_page(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that can show the page."""
    from pipeline.web.address import add_page

    add_page(parser)
