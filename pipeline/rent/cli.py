"""The `pion` commands that rent, and their arguments. Parsing does not import SkyPilot."""

from __future__ import annotations

import argparse

from pipeline.commands.cli import Add
from pipeline.console.out import saying_if_slow
from pipeline.live.options import add_page, page_address
from pipeline.rent.replay.options import BENCH_HELP

_LOADING = "loading the code that knows machines: a first start takes longer"

RUN_HELP = "STORE/NAME, or a name in runs/"
ON_HELP = "the SkyPilot file that lists the machines to rent, such as sky/runpod-spot.yaml"
DEAR_SPOT_HELP = "accept a spot price above the on-demand price"
UNTIL_HELP = "end the rental after this stage; default: as the SkyPilot file says, or the last one"
FORCE_HELP = f"{DEAR_SPOT_HELP}, and rent even if a machine for this run is already starting"


def add_rent_commands(add: Add) -> None:
    """Add check, plan, launch, watch, hop, rentals and replay; `add` makes a command's parser."""
    _add_check_and_plan(add)
    _add_managed(add)
    _add_replay(add)


def _add_check_and_plan(add: Add) -> None:
    check = add("check", _check, "find mistakes in a job before they cost money", overrides=True)
    _job(check)
    check.add_argument("--on", metavar="SKY", help=ON_HELP)
    check.add_argument("--force", action="store_true", help=DEAR_SPOT_HELP)
    check.add_argument("--json", action="store_true", help="print JSON")

    plan = add("plan", _plan, "show memory, batch, time and dollars for each GPU", overrides=True)
    _job(plan)
    machines = plan.add_mutually_exclusive_group()
    machines.add_argument(
        "--gpu",
        metavar="NAME",
        action="append",
        default=[],
        help="show only this GPU; may be repeated",
    )
    machines.add_argument("--on", metavar="SKY", help=f"show only these machines: {ON_HELP}")
    plan.add_argument("--bench", metavar="FILE", action="append", default=[], help=BENCH_HELP)
    plan.add_argument("--json", action="store_true", help="print JSON")


def _add_managed(add: Add) -> None:
    launch = add(
        "launch", _launch, "rent a machine and run a job there until it is done", overrides=True
    )
    _job(launch)
    launch.add_argument("--on", metavar="SKY", required=True, help=ON_HELP)
    launch.add_argument("--until", metavar="STAGE", help=UNTIL_HELP)
    launch.add_argument("--dry-run", action="store_true", help="print SkyPilot's task and stop")
    launch.add_argument("--force", action="store_true", help=FORCE_HELP)

    watch = add("watch", _watch, "show a rented run and keep it running")
    watch.add_argument("run", metavar="RUN", help=RUN_HELP)
    watch.add_argument("--once", action="store_true", help="look once, act, and return")
    add_page(watch)

    hop = add("hop", _hop, "move a rented run to another machine", overrides=True)
    hop.add_argument("run", metavar="RUN", help=RUN_HELP)
    hop.add_argument("--on", metavar="SKY", required=True, help=ON_HELP)
    hop.add_argument(
        "--job", metavar="FILE", help="the job file; default: the job that the store records"
    )
    hop.add_argument("--force", action="store_true", help=FORCE_HELP)

    rentals = add(
        "rentals", _rentals, "list every rented machine, its cost, and whether it is gone"
    )
    rentals.add_argument("run", metavar="RUN", nargs="?", help=f"{RUN_HELP}; default: all")
    rentals.add_argument("--reap", action="store_true", help="terminate orphaned pods on RunPod")
    rentals.add_argument("--json", action="store_true", help="print JSON")


def _add_replay(add: Add) -> None:
    from pipeline.rent.replay.options import add_options

    replay = add(
        "replay",
        _replay,
        "estimate finish time, dollars and useful share of the paid time on recorded spot markets",
        overrides=True,
    )
    _job(replay)
    replay.add_argument(
        "--trace",
        metavar="FILE",
        nargs="+",
        action="extend",
        required=True,
        help="JSON files that record when spot machines were available; see docs/renting.md",
    )
    add_options(replay)
    replay.add_argument("--png", metavar="FILE", help="also draw the result to this file")
    replay.add_argument("--json", action="store_true", help="print JSON")


def _job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="a job file, such as jobs/pion-small.yaml")


def _check(args: argparse.Namespace) -> int:
    with saying_if_slow(_LOADING, quiet=args.json):
        from pipeline.rent.check.command import show_check

    return show_check(args.job, args.overrides, on=args.on, force=args.force, as_json=args.json)


def _plan(args: argparse.Namespace) -> int:
    with saying_if_slow(_LOADING, quiet=args.json):
        from pipeline.rent.plan.command import show_plan

    return show_plan(
        args.job,
        args.overrides,
        gpus=args.gpu,
        as_json=args.json,
        bench=args.bench,
        on=args.on,
    )


def _launch(args: argparse.Namespace) -> int:
    with saying_if_slow(_LOADING):
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

    refuse_unrented(args.run)
    with saying_if_slow(_LOADING):
        from pipeline.rent.managed.watch import watch

    return watch(args.run, once=args.once, page=page_address(args))


def _hop(args: argparse.Namespace) -> int:
    with saying_if_slow(_LOADING):
        from pipeline.rent.managed.hop import hop

    return hop(args.run, on=args.on, overrides=args.overrides, job=args.job, force=args.force)


def _rentals(args: argparse.Namespace) -> int:
    with saying_if_slow(_LOADING, quiet=args.json):
        from pipeline.rent.managed.rentals import show_rentals

    return show_rentals(args.run, reap=args.reap, as_json=args.json)


def _replay(args: argparse.Namespace) -> int:
    from pipeline.rent.replay.command import show_replay
    from pipeline.rent.replay.options import Given

    return show_replay(
        args.job,
        args.overrides,
        traces=args.trace,
        given=Given.of(args),
        png=args.png,
        as_json=args.json,
    )
