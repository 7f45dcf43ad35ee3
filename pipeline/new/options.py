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

# What a column can have. An option for each names a column: --text-column NAME.
COLUMNS = ("text", "turns", "question", "answer")


@dataclass
class NewOptions:
    """The command line, read.

    Attributes:
        data: a file or a folder.
        target: the job file to write.
        base: a model to start from, or "none"; None: by the rules.
        stock: whether other programs than Pion and transformers will run the model.
        skip: whether what can't be read is left out.
        use: "text", "chats" or "both", where data could be either.
        columns: by what they have (COLUMNS), the columns that the person named.
        roles: what names of roles mean, in small letters.
        asks: whether the person may be asked.
        command: the command line itself.
    """

    data: Path
    target: Path
    dollars: float = 20.0
    base: str | None = None
    stock: bool = False
    dry_run: bool = False
    skip: bool = False
    use: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    asks: bool = True
    command: str = ""

    @property
    def folder(self) -> Path:
        """The folder of the job file."""
        return self.target.absolute().parent

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
        by_number = {str(number): answer for number, answer in enumerate(answers, 1)}
        for number, answer in by_number.items():
            show(f"  {number}  {answer}")
        try:
            typed = input("number: ").strip()
        except EOFError:
            typed = ""
        if typed not in (*answers, *by_number):
            raise BadInput(f"{typed!r:.40} is none of the answers. Nothing was written.")
        return by_number.get(typed, typed)


def read_options(args: argparse.Namespace) -> NewOptions:
    """Return what the arguments say. Raises BadInput for a number that is no price."""
    if not (math.isfinite(args.dollars) and 0 < args.dollars <= 1e6):
        raise BadInput(f"--dollars {args.dollars:g} must be above 0, and at most 1,000,000")
    data, columns = Path(args.data), {name: vars(args)[f"{name}_column"] for name in COLUMNS}
    return NewOptions(
        data,
        Path(f"{name_of(data)}.yaml" if args.out is None else args.out),
        args.dollars,
        args.base,
        args.runs_in in ("llama.cpp", "vllm"),
        args.dry_run,
        args.skip_unreadable,
        args.use,
        {name: column for name, column in columns.items() if column is not None},
        parse_roles(args.roles),
        command=_command(args),
    )


def _command(args: argparse.Namespace) -> str:
    """Return the command line, for the comment in the job file."""
    line = ["pion", "new", args.data]
    for name, value in sorted(vars(args).items()):
        if name not in ("data", "command", "out", "dry_run") and value not in (None, False):
            option = "--from" if name == "base" else f"--{name.replace('_', '-')}"
            value = f"{value:g}" if isinstance(value, float) else value
            line += [option] if value is True else [option, value]
    # It becomes a comment, which a line break of any kind would end.
    return "".join(c if c.isprintable() else "?" for c in masked(shlex.join(line)))


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
