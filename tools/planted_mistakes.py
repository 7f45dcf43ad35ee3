"""Plant the mistakes of planted_mistakes.toml, one at a time, and run the tests that should fail.

    python tools/planted_mistakes.py                          # each mistake, with its `caught_by`
    python tools/planted_mistakes.py --id 7                   # one of them
    python tools/planted_mistakes.py --id 7 -m soak tests/faults    # with other tests

A mistake is planted in this checkout and taken out again. If this script is killed, `git diff`
shows what is left. The exit code is 1 if a mistake is not caught. After code was moved or changed,
change `file`, `old` and `new`, so that `symbol` has the same mistake as before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".toml")
NOTHING = "nothing"
PYTEST = "python -m pytest -n 0 -q -x"
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
# With some mistakes, a test waits for ever.
HANG_SECONDS = 300.0


@dataclass(frozen=True)
class Mistake:
    """A mistake: `old` in `file` becomes `new`.

    Attributes:
        symbol: the function that has it, so that it can be found after a move.
        sees: what a user of Pion would see.
        caught_by: the test that fails first; "nothing" if none does.
        before: what caught it at commit dd835f4, before modules were merged and moved.
        hangs: whether this test does not end, in place of failing.
    """

    id: int
    file: str
    symbol: str
    sees: str
    old: str
    new: str
    caught_by: str = NOTHING
    before: str = NOTHING
    hangs: bool = False


@contextlib.contextmanager
def planted(mistake: Mistake) -> Iterator[None]:
    """Have the mistake in this checkout during the block. Raises LookupError if it has no place."""
    path = REPOSITORY / mistake.file
    if not path.exists() or path.read_text(encoding="utf-8").count(mistake.old) != 1:
        raise LookupError(f"{mistake.file} must have `old` once: look for its new place")
    text, times = path.read_text(encoding="utf-8"), path.stat()
    try:
        path.write_text(text.replace(mistake.old, mistake.new), encoding="utf-8")
        yield
    finally:
        path.write_text(text, encoding="utf-8")
        # With another time than the mistake had, no bytecode of the mistake stays in use.
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def run(command: Sequence[str], *, hangs: bool) -> tuple[bool, str]:
    """Return whether a test fails, or hangs as expected; and which test, or what else happened."""
    limit = HANG_SECONDS if hangs else None
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return True, f"{command[-1]} did not end in {HANG_SECONDS:.0f} s"
    if done.returncode == pytest.ExitCode.OK:
        return False, NOTHING
    found = FAILED.search(done.stdout)
    if done.returncode == pytest.ExitCode.TESTS_FAILED and found is not None:
        return True, found[1]
    return False, f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}"


def main() -> None:
    """Plant the mistakes, and print which test has caught each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--id", type=int, action="append", help="a mistake; by default all")
    parser.add_argument("--pytest", default=PYTEST, metavar="COMMAND", help=f"instead of: {PYTEST}")
    options, tests = parser.parse_known_args()
    missed = 0
    with LIST.open("rb") as file:
        mistakes = [Mistake(**raw) for raw in tomllib.load(file)["mistake"]]
    for mistake in mistakes:
        if options.id and mistake.id not in options.id:
            continue
        of_mistake = tests or [mistake.caught_by]
        caught, words = False, NOTHING
        try:
            if of_mistake != [NOTHING]:
                command = [*shlex.split(options.pytest), *of_mistake]
                with planted(mistake):
                    caught, words = run(command, hangs=mistake.hangs)
        except LookupError as error:
            words = str(error)
        missed += not caught
        print(f"{mistake.id:3} {mistake.symbol}: {words}", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
