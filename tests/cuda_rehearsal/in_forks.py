"""Run programs of the rehearsal, each in a fork: importing torch would take the longest in each.

environment.py starts this program: `python -m tests.cuda_rehearsal.in_forks folder`. It runs all of
`SUITE`, and writes what each program prints into the folder, under the name of `file_of`.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import sys
import traceback
from pathlib import Path

from tests.cuda_rehearsal.environment import SUITE, file_of

# What the programs import. None of these is a program itself.
IMPORTED = (
    "pipeline.training.compute_plan",
    "tests.cuda_rehearsal.fake_group",
    "tests.cuda_rehearsal.live_bytes",
    "tests.cuda_rehearsal.scenarios",
    "tests.support.jobs",
)


def run_in_fork(program: tuple[str, ...], output: Path) -> int:
    """Run the program with its arguments and return its exit code. `output` gets what it prints."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
    module, *_ = sys.argv = list(program)
    try:
        runpy.run_module(module, run_name="__main__")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # taking down what was imported takes seconds


def main() -> None:
    folder = Path(sys.argv[1])
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # no fork looks at what was imported, or copies it
    codes = {program: run_in_fork(program, file_of(folder, program)) for program in SUITE}
    failed = {program: code for program, code in codes.items() if code}
    sys.exit(f"exit codes: {failed}" if failed else 0)


if __name__ == "__main__":
    main()
