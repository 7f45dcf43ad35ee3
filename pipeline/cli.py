"""Parses the `pion` command line and calls the command. Each command does its heavy imports.

The other arguments: cli.py of pipeline/commands, rent and new.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Container, Mapping, Sequence
from typing import Any, NoReturn, cast

from pion.errors import BadInput, Paused, PionError, causes, is_panic
from pipeline.commands.arguments import Add, Argument, Command, argument, flag
from pipeline.commands.cli import add_commands
from pipeline.commands.completion import SHELLS, completion
from pipeline.commands.parser import OVERRIDES, Parser, Version, without_overrides
from pipeline.console.bug_file import report_bug
from pipeline.console.formats import printable, show
from pipeline.console.masking import masked, refuse_endpoints, refuse_secret_arguments
from pipeline.machine.child_process import PART_OF_SEARCH
from pipeline.machine.no_room_or_permission import refusal
from pipeline.new.cli import add_new
from pipeline.rent.cli import add_rent_commands
from pipeline.run.signals import early_sigterm

LONGEST_ERROR = 20_000
EXIT_CODES = """\
exit codes:
  0   done
  1   failed, or a bug in Pion; what was committed is safe
  2   the request is invalid, would invalidate committed work, or fails publish.require;
      or the store fails before any work
  3   another process took the run over, or the run was moved or deleted
  4   stopped on request or by the budget; state is saved
  74  work was done that could not be stored; the message says where it is
  75  interrupted; state is saved, so run the same command again
      (130: interrupted before there was anything to save)

`pion run --help-job` explains each field of a job file. `pion help` lists the documentation.
"""
# The commands by what they are for, in the order in which a person needs them.
GROUPS = {
    "train": "new init check plan run try",
    "look after runs": "status report checkpoints stop fork rm data prove",
    "rent machines": "launch watch deadline rentals hop bench",
    "use models": "chat generate serve eval export import-seed",
    "this program": "help schema completion",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see EXIT_CODES)."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ASCII log must not end the command
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv is None and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # pipeline/entry.py set it
        if argv is None and _works_unattended(arguments):
            early_sigterm()
        refuse_secret_arguments(arguments)
        args = _parse(arguments)
        refuse_endpoints(os.environ)
        code: int = args.command(args) or 0
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: --help, or invalid arguments
        return int(stop.code or 0)
    except PionError as error:
        return _fail(_ending(error, arguments))
    except BrokenPipeError:
        # The reader is gone. Without this, Python prints an error when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        # Libraries turn a Ctrl-C into errors of their own, such as one about a class or an import.
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
            return 130
        if os.environ.get("PION_DEBUG") or not (isinstance(error, Exception) or is_panic(error)):
            raise
        refused = refusal(error)
        if refused is not None:
            return _fail(refused)
        print(report_bug(error, arguments), file=sys.stderr)
        return 1


def _works_unattended(arguments: Sequence[str]) -> bool:
    """Return whether a SIGTERM without anything to save means that the command begins again
    elsewhere."""
    if arguments[:1] == ["try"]:
        from pipeline.state.owner import launch_id

        return launch_id() is not None
    return arguments[:1] == ["run"]


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that the caller has closed (`pion status >&-`).

    Otherwise the next file that is opened would be the standard output of every child.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _fail(error: PionError) -> int:
    """Print the error with which the command ends, without secrets and control characters; return
    its exit code. A pause that the job asks for is called a pause."""
    kind = "paused" if isinstance(error, Paused) else "error"
    if kind == "paused" and PART_OF_SEARCH in os.environ:
        return error.exit_code
    print(f"{kind}: {printable(masked(str(error)))[:LONGEST_ERROR]}", file=sys.stderr)
    return error.exit_code


def _ending(error: PionError, arguments: Sequence[str]) -> PionError:
    """Return the error with which the command ends: a verdict on a StoreError, or `error` itself.

    Commands that can lose work give the verdict themselves, so this command only reads or asks.
    """
    from pipeline.state.stores import StoreError
    from pipeline.state.stores.errors import verdict

    if not isinstance(error, StoreError):
        return error
    command = f"`pion {shlex.join(arguments)}`"
    return verdict(error, PionError, "Nothing was lost.", command=command)


# ---------------------------------------------------------------- arguments


def _parser() -> Parser:
    parser = Parser(
        prog="pion",
        usage="pion [-h] [--version] COMMAND …",
        description="Train, evaluate, publish and use small language models.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action=Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the version and exit",
    )
    return parser


def _parse(argv: list[str]) -> argparse.Namespace:
    argv = argv or ["--help"]
    parser, take_overrides = _parser_of(argv)
    # argparse accepts no overrides after an option: `pion run JOB --redo sft sft.lr=1e-4`.
    overrides: list[str] = []
    if argv[0] in take_overrides:
        overrides, argv = without_overrides(argv)
    args = parser.parse_args(argv)
    if overrides:
        args.overrides = [*overrides, *args.overrides]
    return args


def _parser_of(argv: Container[str]) -> tuple[Parser, Container[str]]:
    """Return the parser, with the arguments of the commands in `argv` alone, and the commands that
    take overrides."""
    parser = _parser()
    unused = Parser(add_help=False)
    helps: dict[str, str] = {}

    def parser_of(*, prog: str, **described: Any) -> Parser:
        """Make a parser only for a command that may be meant: each takes as long as the rest."""
        return Parser(prog=prog, **described) if prog.split()[-1] in argv else unused

    commands = parser.add_subparsers(
        prog="pion",
        metavar="COMMAND",
        help=argparse.SUPPRESS,
        required=True,
        parser_class=cast("type[Parser]", parser_of),
    )
    take_overrides: dict[str, Parser] = {}

    def add(
        name: str, command: Command, help: str, *arguments: Argument, overrides: bool = False
    ) -> None:
        helps[name] = help
        sub: Parser = commands.add_parser(
            name, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False
        )
        if sub is unused:
            return
        sub.set_defaults(command=command)
        # Some arguments import what they describe, so only those of the command are described.
        for one in arguments:
            one(sub)
        if overrides:
            take_overrides[name] = sub

    _add_run(add)
    add_new(add)
    add_commands(add)
    _add_prove(add)
    add_rent_commands(add)
    _add_this_program(add)
    for sub in take_overrides.values():  # after the other positional arguments
        OVERRIDES(sub)
    parser.commands = tuple(commands.choices)
    parser.subparsers = {name: sub for name, sub in commands.choices.items() if sub is not unused}
    parser.epilog = f"{_grouped(helps)}\n\n{EXIT_CODES}"
    return parser, take_overrides


def _grouped(helps: Mapping[str, str]) -> str:
    """Return the commands in groups, each with its help, as wide as the terminal."""
    width, indent = min(100, shutil.get_terminal_size().columns - 2), " " * 15
    groups = {
        title: "\n".join(
            textwrap.fill(f"  {name:<13}{helps[name]}", width, subsequent_indent=indent)
            for name in names.split()
        )
        for title, names in GROUPS.items()
    }
    return "\n\n".join(f"{title}:\n{lines}" for title, lines in groups.items())


def _completion(args: argparse.Namespace) -> None:
    """Print the script with which a shell completes each command and its options."""
    every = {name for names in GROUPS.values() for name in names.split()}
    print(completion(args.shell, _parser_of(every)[0]))


def _schema(args: argparse.Namespace) -> None:
    """Print the JSON schema of a job."""
    from pipeline.job import Job

    print(json.dumps(Job.model_json_schema(), indent=1, ensure_ascii=False))


def _help(args: argparse.Namespace) -> None:
    """Print a page, the help of a command, or where words are in the pages."""
    from pipeline.commands.help import about, print_topic, search

    if args.search:
        search(args.search)
    elif args.topic in " ".join(GROUPS.values()).split() and not about(args.topic):
        _parse([args.topic, "--help"])
    else:
        print_topic(args.topic)


def _add_this_program(add: Add) -> None:
    shell = argument("shell", choices=tuple(SHELLS), help="prints a script; `pion help commands`")
    add("completion", _completion, "complete commands and options in a shell", shell)
    add("schema", _schema, "print the JSON schema of a job file, by which editors complete keys")
    add(
        "help",
        _help,
        "list the pages of the documentation, or print one",
        argument("topic", metavar="TOPIC", nargs="?", help="a page, a heading or a command"),
        argument("--search", metavar="WORD", nargs="+", help="find these words in the pages"),
    )


def _add_run(add: Add) -> None:
    add(
        "run",
        _run,
        "start or resume a job, and continue until it is done",
        argument(
            "job", metavar="JOB", nargs="?", help="a job file, or one of Pion's own, such as demo"
        ),
        argument(
            "--redo",
            metavar="STAGE",
            help="redo this stage and all later stages: prepare, pretrain, sft, prefer, "
            "reinforce, evaluate or publish",
        ),
        argument(
            "--until",
            metavar="STAGE",
            help="stop after this stage; the same command without --until continues",
        ),
        flag("--take-over", "take the run from its owner; if the owner is still running, it stops"),
        flag("--help-job", "print every field of a job file"),
        overrides=True,
    )


def _add_prove(add: Add) -> None:
    add(
        "prove",
        _prove,
        "kill copies of a job at random moments, and compare their final weights",
        argument("job", metavar="JOB", help="a job file; a copy cut to 60 steps is run"),
        argument("--kills", metavar="N", type=int, default=20, help="number of kills; default: 20"),
        argument("--store", metavar="URL", help="where the runs go; default: the job's store"),
        argument("--seed", metavar="N", type=int, help="the same seed kills at the same moments"),
        argument(
            "--json", metavar="FILE", help="where to write the result; default: NAME-prove.json"
        ),
        flag("--keep", "leave the runs in the store"),
        overrides=True,
    )


# ---------------------------------------------------------------- run and prove


def _run(args: argparse.Namespace) -> int:
    if args.help_job:
        from pipeline.job.help_job import help_job

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(help_job(width))
        return 0
    if args.job is None:
        from pipeline.machine.own_files import own_names

        names = ", ".join(own_names("jobs"))
        raise BadInput(f"name a job file, or one of Pion's own jobs: {names}")
    from pipeline.machine.core_waits import yield_cores

    yield_cores()
    from pipeline.base.job_with_base import read_job
    from pipeline.job.file import job_text

    job = read_job(args.job, args.overrides, args.redo)
    from pipeline.console.display import Display
    from pipeline.run.command import run_job
    from pipeline.run.inputs import RunOptions

    options = RunOptions(
        job_path=shlex.join([args.job, *args.overrides]),
        job_text=job_text(args.job, args.overrides),
        redo=args.redo,
        until=args.until,
        take_over=args.take_over,
    )
    with Display() as display:
        return run_job(job, options, display)


def _prove(args: argparse.Namespace) -> int:
    from pipeline.prove.proof import ProofOptions, prove

    return prove(
        args.job,
        args.overrides,
        ProofOptions(args.kills, args.store, args.seed, args.json, args.keep),
        say=show,
    )


def run_and_exit() -> NoReturn:
    """Call `main` and exit with its code."""
    from pipeline.machine.time_limit import FOREVER

    code = main()
    if any(FOREVER in thread.name for thread in threading.enumerate()):
        # A thread that timed out still runs, perhaps in torch: it would crash the shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the shutdown
    sys.exit(code)


if __name__ == "__main__":
    run_and_exit()
