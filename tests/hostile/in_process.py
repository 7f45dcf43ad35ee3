"""A command in this process that may not take much memory, and how it is refused."""

import io
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch  # noqa: F401 (imported under the limit, torch would not fit)

from pipeline.cli import main

# The memory that a command may add, in bytes, and the seconds after which it counts as hanging.
# What the command imports counts, and 64 MB for each thread that allocates for the first time.
MEMORY, SECONDS = 1 << 30, 60
# How to make what is no file, by what it is.
NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@contextmanager
def little_memory(most: int = MEMORY) -> Iterator[None]:
    """Limit a block: MemoryError if it allocates `most` bytes, TimeoutError if it hangs."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _hangs)
    resource.setrlimit(resource.RLIMIT_AS, (size + most, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def ended(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Return the exit code of `pion arguments…` and what it printed, which is no traceback."""
    with little_memory():
        code = main([str(argument) for argument in arguments])
    printed = "".join(capsys.readouterr())
    assert "bug in Pion" not in printed, printed[-2000:]
    assert "Traceback" not in printed
    return code, printed


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return the message of `pion arguments…`, which must end with exit code 2."""
    code, printed = ended(capsys, *arguments)
    assert code == 2, printed[-2000:]
    message = printed[printed.index("error: ") :]
    assert len(message) < 20_000
    return message


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def pion(*arguments: str | Path, typed: str | bytes = "") -> Ended:
    """Run `pion arguments…` with `typed` on its standard input."""
    given = io.BytesIO(typed if isinstance(typed, bytes) else typed.encode())
    out, err = io.StringIO(), io.StringIO()
    with (
        patch("sys.stdin", io.TextIOWrapper(given, "utf-8")),
        redirect_stdout(out),
        redirect_stderr(err),
        little_memory(2 * MEMORY),
    ):
        code = main([str(argument) for argument in arguments])
    return Ended(code, out.getvalue(), err.getvalue())


def refused(*arguments: str | Path) -> str:
    """Return the one line of a command that ends with code 2, and with nothing else to see."""
    ended = pion(*arguments)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err, ended.err
    assert "bug in Pion" not in ended.err, ended.err
    last = ended.err.rstrip("\n").split("\n")[-1]
    assert last.startswith("error: "), ended.err
    assert len(last) < 1000, last
    return last


def _hangs(*_: Any) -> None:
    raise TimeoutError(f"the command did not end within {SECONDS} s")
