"""What a person asks `pion new` for, on the command line or at a terminal."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pion.data.chat.conversation import role_of
from pion.data.chat.messages import KNOWN_ROLES
from pion.errors import BadInput
from pion.later_fields import shown
from pipeline.console.formats import show
from pipeline.console.masking import masked

# The options that name columns, as they are in `Wishes`.
COLUMNS = ("text_column", "turns_column", "question_column", "answer_column")


@dataclass
class Wishes:
    """What the person said about the data, by the names of the options. None: nothing.

    Attributes:
        use: "text", "chats" or "both", where data could be either.
        roles: what names of roles mean, in small letters.
        asks: whether the person may be asked.
    """

    use: str | None = None
    text_column: str | None = None
    turns_column: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    roles: dict[str, str] = field(default_factory=dict)
    asks: bool = True

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the person named, by the option."""
        named = ((name, getattr(self, name)) for name in COLUMNS)
        return {option_of(name): column for name, column in named if column is not None}

    @property
    def can_ask(self) -> bool:
        """Whether somebody is there to ask."""
        return self.asks and sys.stdin.isatty()

    def ask(self, question: str, answers: Sequence[str], option: str) -> str:
        """Return the person's answer.

        Raises BadInput without a terminal, naming the option that decides, and for another answer.
        """
        if not self.can_ask:
            options = " or ".join(f"{option} {answer}" for answer in answers[:4])
            raise BadInput(f"{question} Decide with {options}. Nothing was written.")
        show(question)
        for number, answer in enumerate(answers, 1):
            show(f"  {number}  {answer}")
        try:
            given = input("number: ").strip()
        except EOFError:
            given = ""
        by_number = {str(number): answer for number, answer in enumerate(answers, 1)}
        if given not in (*answers, *by_number):
            raise BadInput(f"{given!r:.40} is none of the answers. Nothing was written.")
        return by_number.get(given, given)


def option_of(name: str) -> str:
    """Return the option that sets a field of `Wishes`."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class NewOptions:
    """The command line, read. `target` is the job file to write, and `command` the line itself.

    `stock` is whether other programs than Pion and transformers will run the model.
    """

    data: Path
    dollars: float
    base: str | None
    target: Path
    dry_run: bool
    wishes: Wishes
    skip: bool
    command: str
    stock: bool

    @property
    def folder(self) -> Path:
        """The folder of the job file."""
        return self.target.absolute().parent

    @classmethod
    def of(cls, args: argparse.Namespace) -> NewOptions:
        """Return what the arguments say. Raises BadInput for a number that is no price."""
        if not (math.isfinite(args.dollars) and 0 < args.dollars <= 1e6):
            raise BadInput(f"--dollars {args.dollars:g} must be above 0, and at most 1,000,000")
        data = Path(args.data)
        return cls(
            data,
            args.dollars,
            args.base,
            Path(f"{name_of(data)}.yaml" if args.out is None else args.out),
            args.dry_run,
            Wishes(
                args.use,
                args.text_column,
                args.turns_column,
                args.question_column,
                args.answer_column,
                parse_roles(args.roles),
            ),
            args.skip_unreadable,
            _command(args),
            args.runs_in in ("llama.cpp", "vllm"),
        )


def _command(args: argparse.Namespace) -> str:
    """Return the command line, for the comment in the job file."""
    names = {"base": "from"}
    words = ["pion", "new", args.data]
    for key, value in sorted(vars(args).items()):
        if key in ("data", "command", "out", "dry_run") or value in (None, False):
            continue
        given = f"{value:g}" if isinstance(value, float) else value
        words += [option_of(names.get(key, key)), *([] if value is True else [given])]
    # It becomes a comment, which a line break of any kind would end.
    return "".join(c if c.isprintable() else "?" for c in masked(shlex.join(words)))


def parse_roles(text: str | None) -> dict[str, str]:
    """Return what `agent=assistant,customer=user` says. Raises BadInput if it says nothing."""
    roles: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, equals, meaning = part.partition("=")
        role = role_of(meaning) or meaning.strip().lower()
        if not equals or not name.strip() or role not in KNOWN_ROLES:
            raise BadInput(
                f"--roles {text}: {shown(part)} should be NAME=ROLE, such as agent=assistant. The "
                f"roles are {', '.join(KNOWN_ROLES)}"
            )
        roles[name.strip().lower()] = role
    return roles


def name_of(data: Path) -> str:
    """Return a name for the run, from the name of a file or a folder."""
    name = data.resolve().name
    if not data.is_dir():
        name = Path(name.removesuffix(".gz").removesuffix(".zst")).stem
    name = re.sub(r"[^A-Za-z0-9_.+=@-]+", "-", name)
    return re.sub(r"^[^A-Za-z0-9_]+", "", name)[:60].rstrip("-.") or "mine"
