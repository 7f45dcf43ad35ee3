"""The options of the bench. `pion bench` and `python -m pion.bench` share them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

# No row of the default set begins that would probably end after this many minutes.
MINUTES = 7.0


@dataclass(frozen=True)
class Options:
    """What to run, where, and which file gets the result. `only` is empty for the default set."""

    tiny: bool = False
    device: str = "auto"
    only: tuple[str, ...] = ()
    resume: Path | None = None
    out: Path | None = None
    minutes: float = MINUTES
    names: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> Options:
        """Return the parsed options of `add_options`."""
        return cls(
            tiny=args.tiny,
            device=args.device,
            only=tuple(args.only or ()),
            resume=None if args.resume is None else Path(args.resume),
            out=None if args.out is None else Path(args.out),
            minutes=args.minutes,
            names=args.names,
        )


def add_options(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add the bench's options; `folder` says in words where the result goes by default."""
    parser.add_argument(
        "--tiny", action="store_true", help="check tiny models, in seconds, on a CPU by default"
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="auto",
        help="cpu, cuda or cuda:1; default: the first CUDA device, or with --tiny the CPU",
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="run only these rows: losses is all rows that begin with losses/",
    )
    parser.add_argument("--names", action="store_true", help="print the names of all rows and stop")
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="keep the rows that FILE has from this card, torch and code, and add the others",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"the JSON to write; default: the file of --resume, or CARD.json in {folder}",
    )
    parser.add_argument(
        "--minutes",
        metavar="N",
        type=float,
        default=MINUTES,
        help="begin no row of the default set that would probably end after N minutes; default: "
        "%(default)g",
    )
