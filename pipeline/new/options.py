"""What a person asks `pion new` for."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pion.errors import BadInput
from pipeline.console.masking import masked
from pipeline.new.chats import parse_roles
from pipeline.new.layouts import Wishes


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
        option = f"--{names.get(key, key).replace('_', '-')}"
        given = f"{value:g}" if isinstance(value, float) else value
        words += [option] if value is True else [option, given]
    # It becomes a comment, which a line break of any kind would end.
    return "".join(c if c.isprintable() else "?" for c in masked(shlex.join(words)))


def name_of(data: Path) -> str:
    """Return a name for the run, from the name of a file or a folder."""
    name = data.resolve().name
    if not data.is_dir():
        name = Path(name.removesuffix(".gz").removesuffix(".zst")).stem
    name = re.sub(r"[^A-Za-z0-9_.+=@-]+", "-", name)
    return re.sub(r"^[^A-Za-z0-9_]+", "", name)[:60].rstrip("-.") or "mine"
