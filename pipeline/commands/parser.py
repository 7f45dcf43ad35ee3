"""The parser of `pion`'s command line: short messages, key=value anywhere, and the version."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pion import DISTRIBUTION
from pipeline.commands.arguments import argument
from pipeline.console.formats import printable, show
from pipeline.console.masking import masked

OVERRIDES = argument(
    "overrides", metavar="key=value", nargs="*", help="fields to change, such as sft.lr=1e-4"
)

# Commands and options that Pion had once, and what replaces each.
GONE_COMMANDS = {
    "eval --instructions": "name the task ifeval in evaluate.lm_eval.tasks of a job, and lm-eval "
    "asks its fine-tuned model instructions whose answers code can check (`pion help evaluation`)",
    "ladder": "in two of three ladders, its predictions missed large runs by 3 to 17 % "
    "(`pion help halving`). `pion plan JOB --dollars N` chooses a size by rule, and `pion try` "
    "compares settings",
    "plan --ladder": "leave the option out. Sizes follow a rule, and no loss is predicted",
    "replay": "in a checkout of Pion, `python -m benchmarks.replay TRACE.json` replays recorded "
    "spot markets",
    "watch --all": "one `pion watch RUN` looks after one run. `pion rentals` lists what is rented",
    "watch RUN RUN": "one `pion watch RUN` looks after one run. Start one for each, such as a "
    "systemd unit (sky/README.md)",
}


class Parser(argparse.ArgumentParser):
    """Exits with code 2 and a short message that suggests the nearest command."""

    commands: Sequence[str] = ()
    subparsers: Mapping[str, argparse.ArgumentParser] = {}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        first = next((a for a in args or () if not a.startswith("-")), None)
        if self.commands and first is not None:
            self._refuse_gone(f"{first}", *(f"{first} {word.partition('=')[0]}" for word in args))
        if self.commands and first is not None and first not in self.commands:
            close = difflib.get_close_matches(first, self.commands, 1, 0.4)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"there is no command {first!r}{hint} (pion --help lists them)")
        namespace_read, unknown = self.parse_known_args(args, namespace)
        if unknown:
            if not any(word.startswith("-") for word in unknown):
                self._refuse_gone(f"{first} RUN RUN")
            of_command = Parser(prog=f"{self.prog} {first}") if first in self.commands else self
            of_command.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace_read

    def _refuse_gone(self, *asked: str) -> None:
        """Exit with what replaces a command or an option, if one of those that are `asked` for is
        gone."""
        for gone in asked:
            if gone in GONE_COMMANDS:
                self.error(f"`pion {gone}` is gone: {GONE_COMMANDS[gone]}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(masked(message))}\n(see {self.prog} --help)\n")


class Version(argparse.Action):
    """Prints the version. It is only looked up when needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        show(version_line())
        parser.exit()


def version_line() -> str:
    """Return `pion 0.1.0 (c28abf5, changed since)`; without a known commit, only the version."""
    import importlib.metadata

    from pipeline.state.owner import code_version

    version = f"pion {importlib.metadata.version(DISTRIBUTION)}"
    code = code_version()
    if code.commit is None:
        return version
    return f"{version} ({code.commit[:7]}{', changed since' if code.dirty else ''})"


def without_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return the overrides in `argv`, and the rest. The value of `--vary` looks like one."""
    arguments: tuple[list[str], list[str]] = ([], [])
    for before, word in zip(["", *argv], argv):
        arguments[before == "--vary" or not _is_override(word)].append(word)
    return arguments


def _is_override(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return bool(equals) and not argument.startswith("-") and "/" not in key
