"""The arguments of `pion ladder` and `pion try`."""

from __future__ import annotations

import argparse

from pipeline.commands.arguments import JSON, Add, argument

_HOURS = argument(
    "--hours",
    metavar="H",
    type=float,
    help="at most so many machine hours over all its runs; kept in the store",
)
_DOLLARS = argument(
    "--dollars",
    metavar="D",
    type=float,
    help="at most so many dollars over all its runs; kept in the store. Needs "
    "budget.dollars_per_hour on a machine that was not rented",
)
_OF_BOTH = (_HOURS, _DOLLARS, JSON)


def add_ladder_commands(add: Add) -> None:
    """Add `ladder` and `try`; `add` makes a command's parser."""
    _add_ladder(add)
    _add_try(add)


def _add_ladder(add: Add) -> None:
    add(
        "ladder",
        _ladder,
        "train small copies of a job's model, and fit how the loss falls with size and tokens",
        argument("job", metavar="JOB", help="a job file with `pretrain`"),
        argument(
            "--widths",
            metavar="SHARES",
            help="the widths of the models, as shares of the job's d_model; default: "
            "0.25,0.35,0.5,0.7. Depth and heads follow",
        ),
        argument(
            "--tokens",
            metavar="SHARES",
            help="the training tokens, as shares of the job's; default: "
            "0.03125,0.0625,0.125,0.25. Batch and rates follow",
        ),
        argument(
            "--hold-out",
            metavar="N",
            help="leave the N largest runs out of the fit, and predict them before they start; or "
            "more runs as shares of width and tokens, such as 0.7x0.5,0.9x0.5",
        ),
        *_OF_BOTH,
        overrides=True,
    )


def _add_try(add: Add) -> None:
    add(
        "try",
        _try,
        "find the best of some settings with less than half of their steps",
        argument("job", metavar="JOB", help="a job file"),
        argument(
            "--vary",
            metavar="KEY=A,B",
            action="append",
            default=[],
            help="a field and its values, such as pretrain.lr=1e-3,2e-3,4e-3; may be repeated, "
            "for every combination",
        ),
        argument(
            "--seeds",
            metavar="N",
            type=int,
            default=3,
            help="runs of each setting, the first with the job's seed; default: 3. A third of them "
            "(at least one) decides at the end; the others tell how large the noise is",
        ),
        *_OF_BOTH,
        overrides=True,
    )


def _ladder(args: argparse.Namespace) -> int:
    from pipeline.ladder.cap import Cap
    from pipeline.ladder.command import grid_of, run_ladder

    grid, cap = grid_of(args.widths, args.tokens, args.hold_out), Cap(args.hours, args.dollars)
    return run_ladder(args.job, args.overrides, grid, cap, as_json=args.json)


def _try(args: argparse.Namespace) -> int:
    from pipeline.ladder.try_command import TryOptions, run_try

    options = TryOptions(
        varied=tuple(args.vary),
        seeds=args.seeds,
        hours=args.hours,
        dollars=args.dollars,
        as_json=args.json,
    )
    return run_try(args.job, args.overrides, options)
