"""A command in a fork of this process, with little memory and time, so that no attack hurts."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

# Commands import these when they start. Here it happens once, and not in each fork.
import pipeline.commands.chat
import pipeline.commands.eval
import pipeline.commands.export
import pipeline.commands.import_seed
import pipeline.models.load  # noqa: F401
from pipeline.cli import main

# A command may take this much more memory than this process has, in bytes, and this many seconds.
MEMORY, SECONDS = 2 << 30, 30


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (-9: killed), standard output and standard error."""

    code: int
    out: str
    err: str


def pion(*arguments: str | Path, typed: str | bytes = "") -> Ended:
    """Run `pion arguments…` with `typed` on its standard input."""
    with contextlib.ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(typed if isinstance(typed, bytes) else typed.encode())
        given.seek(0)
        child = os.fork()
        if child == 0:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            _run([str(argument) for argument in arguments])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Ended(code, *texts)


def refused(*arguments: str | Path, typed: str = "") -> str:
    """Return the one line of a command that ends with code 2, and with nothing else to see."""
    ended = pion(*arguments, typed=typed)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err, ended.err
    assert "bug in Pion" not in ended.err, ended.err
    last = ended.err.rstrip("\n").split("\n")[-1]
    assert last.startswith("error: "), ended.err
    assert len(last) < 1000, last
    return last


def _run(arguments: list[str]) -> None:
    """Run the command and end this process, whatever happens."""
    code = -1
    try:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        torch.set_num_threads(1)  # threads of the parent are not in a fork
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, "w" if number else "r", closefd=False) for number in range(3)
        )
        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
