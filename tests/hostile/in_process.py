"""A command in this process that may not take much memory, and how it is refused."""

import io
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

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


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def pion(*arguments: str | Path, typed: str | bytes = "", memory: int | None = 2 * MEMORY) -> Ended:
    """Run `pion arguments…` with `typed` on its standard input. It must not end as a bug.

    `memory` is how many bytes it may add; None: any number.
    """
    stdin = io.BytesIO(typed if isinstance(typed, bytes) else typed.encode())
    out, err = io.StringIO(), io.StringIO()
    with (
        patch("sys.stdin", io.TextIOWrapper(stdin, "utf-8")),
        redirect_stdout(out),
        redirect_stderr(err),
        little_memory(memory) if memory is not None else nullcontext(),
    ):
        code = main([str(argument) for argument in arguments])
    printed = out.getvalue() + err.getvalue()
    assert "bug in Pion" not in printed, printed[-2000:]
    assert "Traceback" not in printed, printed[-2000:]
    return Ended(code, out.getvalue(), err.getvalue())


def ends_with(code: int, *arguments: str | Path) -> str:
    """Return all that a command printed, which must end with this code. Its store may be large."""
    ended = pion(*arguments, memory=None)
    assert ended.code == code, ended
    return ended.out + ended.err


def refusal(*arguments: str | Path) -> str:
    """Return the message of a command, which must end with code 2."""
    ended = pion(*arguments, memory=MEMORY)
    assert ended.code == 2, ended
    message = ended.err[ended.err.index("error: ") :]
    assert len(message) < 20_000
    return message


def refused(*arguments: str | Path) -> str:
    """Return the message of a command that ends with code 2, which is one short line."""
    message = refusal(*arguments).rstrip("\n")
    assert "\n" not in message, message
    assert len(message) < 1000, message
    return message


def _hangs(*_: Any) -> None:
    raise TimeoutError(f"the command did not end within {SECONDS} s")
