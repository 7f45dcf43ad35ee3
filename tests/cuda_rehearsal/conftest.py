import fcntl
import os

import pytest

from tests.cuda_rehearsal.environment import (
    SUITE,
    compile_shim,
    file_of,
    run_pretended,
    why_impossible,
)
from tests.cuda_rehearsal.report import read_reports


@pytest.fixture(scope="session")
def run_on_pretended_card(tmp_path_factory):
    """`run_on_pretended_card(module, *arguments)`: what this program prints."""
    reason = why_impossible()
    if reason is not None:
        pytest.skip(reason)
    shim = compile_shim(tmp_path_factory.mktemp("cuda shim"))
    temporary = tmp_path_factory.getbasetemp()
    # Each of xdist's processes has its own folder in the folder of the session.
    shared = temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary

    def run(*program):
        if program in SUITE:
            return _output_in_suite(program, shim, shared / "rehearsals")
        return run_pretended(program[0], shim, *program[1:])

    return run


def _output_in_suite(program, shim, folder):
    """Return what a program of the suite prints. The first caller of all processes runs them all.

    If a program fails, each caller tries again, and has the error.
    """
    folder.mkdir(exist_ok=True)
    finished = folder / "finished"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            run_pretended("tests.cuda_rehearsal.in_forks", shim, str(folder))
            finished.touch()
    return file_of(folder, program).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def on_pretended_card(run_on_pretended_card):
    """`on_pretended_card(module, *arguments)`: the reports of this program on a pretended card."""
    return lambda *program: read_reports(run_on_pretended_card(*program))
