"""A process that has imported what a run imports from others, and forks for each run.

A run is a fork of it that imports Pion itself, and ends as `python -m pipeline.cli` ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

# Nothing of Pion: its modules are imported by each run, in their own order. What reads the
# environment as it is imported must be named in `warm_start.READ_AT_START`.
IMPORTED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "numpy",
    "pydantic.dataclasses",
    "pydantic.type_adapter",
    "safetensors.torch",
    "tokenizers",
    "torch",
    "yaml",
)
MODULE = "pipeline.cli"
MAX_REQUEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """The arguments, the folder, the environment and the umask of a run; -1: the umask as here."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    umask: int


def run_for_next_request(requests: socket.socket) -> None:
    """Fork for each request; return in the fork. Exit when nobody can ask any more."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 2)
        if not message:
            sys.exit()
        if os.fork() == 0:
            output, word = descriptors
            _fork_and_wait(output, word)
            requests.close()
            _become(Request(**json.loads(message)), output)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _fork_and_wait(output: int, word: int) -> None:
    """Return in a fork. Its parent writes the fork's id and its exit code to `word`, and exits."""
    run = os.fork()
    if run == 0:
        os.close(word)
        return
    os.close(output)
    os.write(word, f"{run}\n".encode())
    _, status = os.waitpid(run, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(word, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: Request, output: int) -> None:
    """Do what happens between the start of a process and its first line."""
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    os.close(output)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    if request.umask != -1:
        os.umask(request.umask)
    os.chdir(request.folder)
    before = _python_path(os.environ)
    os.environ.clear()
    os.environ.update(request.environment)
    others = [path for path in sys.path if path not in before]
    sys.path[:] = [request.folder, *_python_path(os.environ), *others]
    sys.argv = [MODULE, *request.arguments]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tempfile.tempdir = None
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")


def _python_path(environment: Mapping[str, str]) -> list[str]:
    return [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runs and for pytest
    for name in IMPORTED:
        importlib.import_module(name)
    assert not {"pion", "pipeline", "huggingface_hub"} & sys.modules.keys()
    run_for_next_request(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
