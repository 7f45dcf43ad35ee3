"""Commands in forks of a process that has imported everything, so that each starts at once.

A fork can do what its parent must not: mount a file system, become another user, lower its limits.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

import pipeline.cli
from tests.paths import REPOSITORY
from tests.support import warm_pion

T = TypeVar("T")

IMPORTED = (
    *warm_pion.IMPORTED,
    "pipeline.commands.export",
    "pipeline.commands.import_seed",
    "pipeline.commands.report",
    "pipeline.commands.status",
    "pipeline.commands.stop",
    "tests.support.hard_places",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it printed."""

    code: int
    output: str


def in_fork(work: Callable[..., T], *arguments: Any) -> T:
    """Return what `work(*arguments)` returns in a fork. `work` is in an `IMPORTED` module."""
    context = _context()
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, work, arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"{work.__name__} ended with {process.exitcode}") from None
    finally:
        process.join()


def pion(*arguments: str, folder: str, env: Mapping[str, str] | None = None) -> Ended:
    """Run `pion arguments…` in `folder`, in a fork of this process."""
    reading, writing = os.pipe()  # a file may have no room
    child = os.fork()
    if child == 0:
        _become_pion(arguments, folder, dict(env or {}), writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        output = pipe.read().decode(errors="replace")
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output)


def _become_pion(arguments: tuple[str, ...], folder: str, env: dict[str, str], output: int) -> None:
    """Run the command and end this process, whatever happens."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.update(env)
        os.chdir(folder)
        code = pipeline.cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _send(sending: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sending.send(work(*arguments))


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with contextlib.chdir(REPOSITORY):  # where the server finds `tests`
        forkserver.ensure_running()
    return context
