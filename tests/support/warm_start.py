"""Start `pion run` without the seconds in which Python imports torch.

Each run is a process of its own, forked by a server that has imported torch and matplotlib (see
`warm_server`). Two servers take turns, so that a run and the one that continues it hash strings
differently, as any two processes do.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.support import warm_server
from tests.support.warm_server import Request

# Python, a library of the system, or what a server imports reads these when a process starts.
READ_AT_START = (
    *("CUDA", "KMP", "LANG", "LC_", "LD_", "MALLOC", "MKL", "MPL", "NPY", "OMP", "OPENBLAS"),
    *("PYTHON", "PYTORCH", "TORCH", "TRITON", "TZ"),
)
_turns = itertools.cycle((0, 1))


class Forked(subprocess.Popen[str]):
    """A run that a server has forked. Its parent tells its id, and later its exit code."""

    def __init__(self, args: Sequence[str], output: int, word: int) -> None:
        self.args = args
        self.stdin = self.stderr = None
        self.stdout = os.fdopen(output)
        self._word = os.fdopen(word)
        self.returncode = None
        self.pid = int(self._word.readline())

    def poll(self) -> int | None:
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._word], [], [], seconds)[0]:
            self.returncode = int(self._word.readline())
            self._word.close()
        return self.returncode


def start_warm(
    arguments: Sequence[str], folder: Path, env: Mapping[str, str] | None, umask: int
) -> Forked | None:
    """Start `python -m pipeline.cli arguments…` in `folder`.

    Returns None if a server can't do it: the run must start under other `READ_AT_START`.
    """
    environment = dict(os.environ if env is None else env)
    requests, started_with = _server(next(_turns))
    if _read_at_start(environment) != started_with:
        return None
    request = Request(list(arguments), str(folder), environment, umask)
    (output, to_output), (word, to_word) = os.pipe(), os.pipe()
    socket.send_fds(requests, [json.dumps(asdict(request)).encode()], [to_output, to_word])
    os.close(to_output)
    os.close(to_word)
    return Forked(["pion", *arguments], output, word)


@functools.cache
def _server(turn: int) -> tuple[socket.socket, dict[str, str]]:
    """Start a server; it ends with this process. Returns what asks it, and its READ_AT_START."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen(
        [sys.executable, "-P", warm_server.__file__, str(its.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[its.fileno()],
    )
    its.close()
    return ours, _read_at_start(os.environ)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a process reads at its start. A server handles PYTHONPATH itself."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_START) and name != "PYTHONPATH"
    }
