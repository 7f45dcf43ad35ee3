"""`pion` as a real process that starts at once: a fork of a process that has imported everything.

The start of a run imports torch, which takes a core for seconds. A server imports it once for each
of pytest's processes, and forks for each command. The fork has its own pid, environment, folder and
output, and can be killed as any process. It does not test how `pion` is imported.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.paths import REPOSITORY

# What a run imports.
IMPORTED = (
    # Other users may not be allowed to read Python's own files.
    "encodings.idna",
    "encodings.utf_8_sig",
    "boto3",
    "pion.formats.export",
    "pion.formats.verify",
    "pipeline.cli",
    "pipeline.run.command",
    "pipeline.stages.evaluate",
    "pipeline.stages.prepare",
    "pipeline.stages.publish",
    "pipeline.training.loop",
    "transformers",
)
# Variables that a library or Python itself reads when it is imported.
READ_AT_IMPORT = ("HF_", "OMP_", "MKL_", "GOMP_", "TORCH", "CUDA", "PYTHON", "LC_", "LANG", "LD_")
# What may differ: it is read again in the fork.
READ_AGAIN = {"PYTHONPATH"}
LONGEST_REQUEST = 200_000  # bytes; Linux passes a message of a socket whole
SITE = "sitecustomize.py"


def may_be_forked(environment: Mapping[str, str]) -> bool:
    """Return whether a fork with this environment does what a new process does."""

    def read_at_import(variables: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in variables.items()
            if name.startswith(READ_AT_IMPORT) and name not in READ_AGAIN
        }

    return read_at_import(environment) == read_at_import(_server().environment)


class WarmProcess:
    """A command that runs in a fork: what tests use of `subprocess.Popen`."""

    stdin = stderr = None

    def __init__(self, command: Sequence[str], request: dict[str, Any]) -> None:
        self.args = list(command)
        reading, writing = os.pipe()
        self.stdout = os.fdopen(reading, "r", encoding="utf-8", errors="replace")
        self.returncode: int | None = None
        self.pid = _server().start(request, writing)
        os.close(writing)

    def poll(self) -> int | None:
        """Return the exit code; None while the command runs."""
        if self.returncode is None:
            self.returncode = _server().code_of(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command ends; return its exit code. Raises TimeoutExpired."""
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            _server().listen(0.05)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command without warning."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the command to end."""
        self.send_signal(signal.SIGTERM)


class _Server:
    """The client's side of the server."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.support.warm_pion"]
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stdin=theirs.fileno())
        theirs.close()
        self._codes: dict[int, int] = {}

    def start(self, request: dict[str, Any], output: int) -> int:
        message = json.dumps(request).encode()
        assert len(message) < LONGEST_REQUEST, "the environment of this test is too large"
        socket.send_fds(self._socket, [message], [output])
        while (started := self._read()) is None:
            pass
        return started

    def code_of(self, pid: int) -> int | None:
        self.listen(0.0)
        return self._codes.pop(pid, None)

    def listen(self, seconds: float) -> None:
        while select.select([self._socket], [], [], seconds)[0]:
            self._read()
            seconds = 0.0

    def _read(self) -> int | None:
        """Note how a process has ended; return the pid of one that has started."""
        message = self._socket.recv(1000)
        assert message, "the server of warm processes has ended"
        pid, code = json.loads(message)
        if code is None:
            return int(pid)
        self._codes[pid] = code
        return None


@functools.cache
def _server() -> _Server:
    return _Server()


# ---------------------------------------------------------------- the server


def serve() -> dict[str, Any] | None:
    """Fork for each request until the client ends. Return the request in a fork, else None."""
    for name in IMPORTED:
        importlib.import_module(name)
    client = socket.socket(fileno=os.dup(0))
    ended, wake_up = socket.socketpair()
    wake_up.setblocking(False)
    signal.set_wakeup_fd(wake_up.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pytest's own
    while True:
        readable = select.select([client, ended], [], [])[0]
        if ended in readable:
            ended.recv(1000)
            _tell_who_ended(client)
        if client in readable:
            message, files, _, _ = socket.recv_fds(client, LONGEST_REQUEST, 1)
            if not message:
                return None
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for each in (client, ended, wake_up):
                    each.close()
                os.dup2(files[0], 1)
                os.dup2(files[0], 2)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.close(files[0])
                return dict(json.loads(message))
            os.close(files[0])
            client.send(json.dumps([pid, None]).encode())


def _tell_who_ended(client: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        client.send(json.dumps([pid, os.waitstatus_to_exitcode(status)]).encode())


def become(request: dict[str, Any]) -> NoReturn:
    """Run the command of a request, as `python -m pipeline.cli` does."""
    from pipeline.state import owner

    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["umask"] >= 0:
        os.umask(request["umask"])
    tempfile.tempdir = None  # TMPDIR is read again
    owner._SESSION, owner._STARTED_AT = uuid.uuid4().hex, round(time.time(), 3)
    sys.argv = request["arguments"]
    sys.orig_argv[:] = [sys.executable, "-m", "pipeline.cli", *sys.argv[1:]]
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if folder and (site := Path(folder, SITE)).exists():
            runpy.run_path(str(site))
    from pipeline.entry import run_and_exit

    run_and_exit()


if __name__ == "__main__":
    asked = serve()
    if asked is not None:
        become(asked)
