"""The `pion` commands that rent, and their arguments. Parsing does not import SkyPilot."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from pion.errors import BadInput
from pion.garbage_collection import importing
from pipeline.commands.arguments import BENCH, JSON, Add, add_page, argument, flag, one_of
from pipeline.console.print_and_ask import saying_if_slow

LOADING = "loading the code that knows machines: a first start takes longer"

RUN_HELP = "STORE/NAME, or a name in runs/"
ON_HELP = "the SkyPilot file that lists the machines to rent, or Pion's own, such as runpod-spot"
DEAR_SPOT_HELP = "accept a spot price above the on-demand price"
UNTIL_HELP = "end the rental after this stage; default: as the SkyPilot file says, or the last one"
FORCE_HELP = f"{DEAR_SPOT_HELP}, and rent even if a machine for this run is already starting"


JOB = argument("job", metavar="JOB", help="a job file, or one of Pion's own, such as pion-small")
RUN = argument("run", metavar="RUN", help=RUN_HELP)
ON = argument("--on", metavar="SKY", required=True, help=ON_HELP)
FORCE = flag("--force", FORCE_HELP)


def add_rent_commands(add: Add) -> None:
    """Add init, check, plan, launch, watch, hop and rentals; `add` makes a command's parser."""
    names = argument("names", metavar="NAME", nargs="*", help="such as demo or runpod-spot")
    add("init", _init, "copy Pion's own job or rental file into this folder", names)
    add(
        "check",
        _check,
        "find mistakes in a job before they cost money",
        JOB,
        argument("--on", metavar="SKY", help=ON_HELP),
        flag("--force", DEAR_SPOT_HELP),
        JSON,
        overrides=True,
    )
    _add_plan(add)
    _add_managed(add)


def _add_plan(add: Add) -> None:
    add(
        "plan",
        _plan,
        "show memory, batch, time and dollars for each GPU, or what to train for some dollars",
        argument(
            "job",
            metavar="JOB",
            nargs="?",
            help="a job file, such as jobs/pion-small.yaml; with --dollars it can be left out",
        ),
        argument(
            "--dollars",
            metavar="N",
            type=float,
            help="say what to train for so much money: model, tokens, settings, and the command",
        ),
        argument(
            "--hours", metavar="H", type=float, help="with --dollars: the most hours that it takes"
        ),
        one_of(
            argument(
                "--gpu",
                metavar="NAME",
                action="append",
                default=[],
                help="show only this GPU; may be repeated",
            ),
            argument("--on", metavar="SKY", help=f"show only these machines: {ON_HELP}"),
        ),
        BENCH,
        JSON,
        overrides=True,
    )


def _add_managed(add: Add) -> None:
    add(
        "launch",
        _launch,
        "rent a machine and run a job there until it is done",
        JOB,
        ON,
        argument("--until", metavar="STAGE", help=UNTIL_HELP),
        flag("--dry-run", "print SkyPilot's task and stop"),
        FORCE,
        overrides=True,
    )
    add(
        "watch",
        _watch,
        "show a rented run and keep it running",
        RUN,
        flag("--once", "look once, act, and return"),
        add_page,
    )
    add(
        "hop",
        _hop,
        "move a rented run to another machine",
        RUN,
        ON,
        argument(
            "--job", metavar="FILE", help="the job file; default: the job that the store records"
        ),
        FORCE,
        overrides=True,
    )
    add(
        "rentals",
        _rentals,
        "list every rented machine, its cost, and whether it is gone",
        argument("run", metavar="RUN", nargs="?", help=f"{RUN_HELP}; default: all"),
        flag("--reap", "terminate orphaned pods on RunPod"),
        JSON,
    )


@contextlib.contextmanager
def _loading(*, quiet: bool = False) -> Iterator[None]:
    """Import what a command needs: torch, for the memory of a step."""
    with saying_if_slow(LOADING, quiet=quiet), importing():
        yield


def _init(args: argparse.Namespace) -> None:
    from pipeline.rent.init import init

    init(args.names)


def _check(args: argparse.Namespace) -> int:
    with importing():
        from pipeline.rent.check.command import show_check

    return show_check(args.job, args.overrides, on=args.on, force=args.force, as_json=args.json)


def _plan(args: argparse.Namespace) -> int:
    if args.dollars is not None:
        return _plan_for_dollars(args)
    if args.hours is not None:
        raise BadInput("--hours is for `pion plan --dollars N`. Add --dollars.")
    if args.job is None:
        raise BadInput("name a JOB, or say how much money there is: `pion plan --dollars 20`")
    with _loading(quiet=args.json):
        from pipeline.rent.plan.command import show_plan

    return show_plan(
        args.job,
        args.overrides,
        gpus=args.gpu,
        as_json=args.json,
        bench=args.bench,
        on=args.on,
    )


def _plan_for_dollars(args: argparse.Namespace) -> int:
    with _loading(quiet=args.json):
        from pipeline.rent.plan.command import show_dollars
        from pipeline.rent.plan.dollars import Money
        from pipeline.rent.plan.sizes import sizes_of

    return show_dollars(
        sizes_of(args.job, args.overrides),
        Money(args.dollars, args.hours),
        gpus=args.gpu,
        as_json=args.json,
        bench=args.bench,
        on=args.on,
    )


def _launch(args: argparse.Namespace) -> int:
    with _loading():
        from pipeline.rent.managed.launch import launch

    return launch(
        args.job,
        args.overrides,
        on=args.on,
        dry_run=args.dry_run,
        force=args.force,
        until=args.until,
    )


def _watch(args: argparse.Namespace) -> int:
    from pipeline.rent.managed.names import refuse_unrented
    from pipeline.web.address import page_address

    page = page_address(args)
    refuse_unrented(args.run)
    with _loading():
        from pipeline.rent.managed.watch import watch

    return watch(args.run, once=args.once, page=page)


def _hop(args: argparse.Namespace) -> None:
    with _loading():
        from pipeline.rent.managed.hop import hop

    hop(args.run, on=args.on, overrides=args.overrides, job=args.job, force=args.force)


def _rentals(args: argparse.Namespace) -> int:
    with _loading(quiet=args.json):
        from pipeline.rent.managed.rentals_and_orphans import show_rentals

    return show_rentals(args.run, reap=args.reap, as_json=args.json)
