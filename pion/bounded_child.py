"""A process that runs what others wrote, with bounds on time and memory and without secrets.

The process that asks makes a BoundedChild. The process that answers is a module, which calls
`limit_memory` and takes its requests from `requests`. Both sides write JSON, one object in a line.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Message = dict[str, Any]

# How long the process may take to start, in seconds.
START_SECONDS = 120.0
# The most bytes of an answer: a rendered text may have 32 million characters.
MOST_BYTES = 1 << 28
# How many seconds after its time a request ends if nobody is left who would end the process.
_LEFT_ALONE_SECONDS = 5
# What the process gets of the environment: no keys and tokens.
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


class NoAnswer(Exception):
    """The process gave no answer. The message says why, and begins with "it" or "its"."""


class BoundedChild:
    """Asks one process, a request at a time. A child is for one thread.

    The process ends with `close`, at the latest with this object or this process, and whatever the
    process has started in its group ends with the process. A request without an answer ends the
    process, too, and the next request starts another one.
    """

    process: subprocess.Popen[bytes]
    _socket: socket.socket
    _hello: Message

    def __init__(self, module: str, first: Message, hash_seed: int = 0) -> None:
        """Start nothing yet. `first` is the first request to each process that runs `module`, and
        `hash_seed` is the seed of its hashes."""
        self._module, self._first, self._hash_seed = module, first, hash_seed
        self._end: Callable[[], object] | None = None

    def close(self) -> None:
        """End the process, and all that it has started in its group."""
        if self._end:
            self._end()
        self._end = None

    def start(self) -> Message:
        """Start the process if there is none. Return the answer to the first request.

        Raises NoAnswer if the answer takes more than START_SECONDS, or the process ends.
        """
        if not self._end:
            self._launch()
            self._hello = self._exchange(self._first, START_SECONDS)
        return self._hello

    def ask(self, request: Message, seconds: float) -> Message:
        """Return the answer to a request; that to the first request if this says `broken`.

        Raises NoAnswer if the answer takes more than `seconds`, or the process ends.
        """
        hello = self.start()
        return hello if "broken" in hello else self._exchange(request, seconds)

    def _launch(self) -> None:
        self._socket, theirs = socket.socketpair()
        # Programs may write and delete files where they are.
        folder = TemporaryDirectory(prefix="pion-child-", ignore_cleanup_errors=True)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(self._hash_seed),
                cwd=folder.name,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what it has to say is in its answers
                # A group that can be killed as a whole, and that Ctrl-C does not reach.
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self.process, self._socket, folder)

    def _exchange(self, request: Message, seconds: float) -> Message:
        line = json.dumps([seconds, request], default=str).encode() + b"\n"
        try:
            with ExitStack() as undone:
                # Also on Ctrl-C: a late answer would be taken for that to the next request.
                undone.callback(self.close)
                end = time.monotonic() + seconds
                self._socket.settimeout(seconds)
                self._socket.sendall(line)
                answer = json.loads(self._line(end))
                if not isinstance(answer, dict):
                    raise ValueError
                undone.pop_all()
        except TimeoutError:
            raise NoAnswer(f"it took more than {seconds:g} s") from None
        except OSError:
            raise NoAnswer("its process ended") from None
        except (ValueError, RecursionError):
            raise NoAnswer("its process wrote something else than an answer") from None
        return answer

    def _line(self, end: float) -> bytes:
        """Return what the process writes in a line, until the time `end`."""
        line = bytearray()
        while not line.endswith(b"\n"):
            self._socket.settimeout(max(1e-3, end - time.monotonic()))
            part = self._socket.recv(1 << 20)
            if not part:
                raise ConnectionError
            line += part
            if len(line) > MOST_BYTES:
                raise ValueError
        return bytes(line)


def _environment(hash_seed: int) -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "PYTHONHASHSEED": str(hash_seed),
        "LC_ALL": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        # The cores and the GPUs belong to the process that asks.
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _end(
    process: subprocess.Popen[bytes], ours: socket.socket, folder: TemporaryDirectory[str]
) -> None:
    ours.close()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder.cleanup()


# ---------------------------------------------------------------- in the process that answers


def requests() -> Iterator[tuple[Message, Callable[[Message], None]]]:
    """Yield each request with what sends its answer, until the other side closes the pipe."""
    with socket.socket(fileno=int(sys.argv[1])).makefile("rwb") as lines:

        def reply(answer: Message) -> None:
            signal.alarm(0)
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()

        for line in lines:
            seconds, request = json.loads(line)
            # If the process that asks is gone, nobody else ends an endless program.
            signal.alarm(ceil(seconds) + _LEFT_ALONE_SECONDS)
            yield request, reply


def limit_memory(more: int) -> None:
    """Let this process take so many bytes more than it has now."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    size = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
