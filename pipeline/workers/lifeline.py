"""The connection between the driver and its workers: progress one way, "stop" the other.

If the connection closes, the worker has lost its driver and exits at once, so no worker keeps
training after its driver was killed. The connection is plain TCP: it works between nodes, answers
within milliseconds (a preemption leaves seconds) and needs no other process.

The driver listens on loopback, or with several nodes on its address between the nodes. Until a
connection has shown the token, it may send one short line, in a short time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pion.errors import BadInput
from pion.untrusted import parse_json
from pipeline.console.messages import (
    FromWorker,
    Hello,
    Message,
    SaveAndStop,
    from_fields,
    from_json,
    to_json,
)

LOST_DRIVER_EXIT = 75

# What a connection may do before it has shown the token. A worker does it at once.
HELLO_BYTES = 1024
HELLO_SECONDS = 30.0
# How many connections may be at that point. If there are more, the oldest is closed.
STRANGERS = 64
# How long to wait if this process can't accept a connection, because it has too many files open.
ACCEPT_AGAIN_SECONDS = 0.1


@dataclass(frozen=True)
class LifelineAddress:
    """Where the driver listens, and the token that a worker must send first."""

    host: str
    port: int
    token: str


class LifelineServer:
    """The driver's end: receives every worker's messages, and can ask all workers to stop."""

    def __init__(self, host: str, on_message: Callable[[int, FromWorker], None]) -> None:
        self._on_message = on_message
        self._listener = socket.create_server((host, 0))
        self.address = LifelineAddress(host, self._listener.getsockname()[1], secrets.token_hex(16))
        self._strangers: list[socket.socket] = []
        self._workers: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._stopping = self._closing = False
        threading.Thread(target=self._accept, name="lifeline", daemon=True).start()

    @property
    def connected(self) -> int:
        """The number of connected workers."""
        with self._lock:
            return len(self._workers)

    def ask_to_stop(self) -> None:
        """Ask every worker, now or when it connects, to save its last finished step and end."""
        with self._lock:
            self._stopping = True
            for worker in self._workers.values():
                _send(worker, SaveAndStop())

    def close(self) -> None:
        """Hang up; workers that are still connected exit."""
        with self._lock:
            self._closing = True
            for connection in (self._listener, *self._workers.values(), *self._strangers):
                _hang_up(connection)

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                time.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            with self._lock:
                self._strangers.append(connection)
                if self._closing or len(self._strangers) > STRANGERS:
                    _hang_up(self._strangers.pop(0))
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except RuntimeError:  # no more threads
                self._forget(connection)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            try:
                connection.settimeout(HELLO_SECONDS)
                hello = self._checked(lines.readline(HELLO_BYTES))
                if hello is None:
                    return
                connection.settimeout(None)
                with self._lock:
                    self._strangers = [each for each in self._strangers if each is not connection]
                    self._workers[hello.rank] = connection
                    if self._stopping:
                        _send(connection, SaveAndStop())
                for line in lines:
                    message = from_json(line)
                    if isinstance(message, FromWorker):
                        self._on_message(hello.rank, message)
            except (OSError, ValueError):
                return
            finally:
                self._forget(connection)

    def _checked(self, line: bytes) -> Hello | None:
        """Return the message in a connection's first line, or None unless it has the token."""
        try:
            hello = from_fields(parse_json(line, "a worker's first line"))
        except (BadInput, ValueError):
            return None
        if not isinstance(hello, Hello) or type(hello.rank) is not int:
            return None
        token = str(hello.token).encode()
        return hello if secrets.compare_digest(token, self.address.token.encode()) else None

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._strangers = [each for each in self._strangers if each is not connection]
            self._workers = {r: each for r, each in self._workers.items() if each is not connection}


class Lifeline:
    """A worker's end. If the driver hangs up or dies, the process exits.

    Attributes:
        stop_requested: whether the driver asked for a stop.
    """

    def __init__(self, address: LifelineAddress, rank: int) -> None:
        self.stop_requested = False
        self._closing = False
        self._lock = threading.Lock()
        self._connection = socket.create_connection((address.host, address.port), timeout=30)
        self._connection.settimeout(None)
        _send(self._connection, Hello(address.token, rank))
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def send(self, message: FromWorker) -> None:
        """Send a message; if the driver is gone, the listening thread ends this process."""
        with self._lock:
            _send(self._connection, message)

    def close(self) -> None:
        """Hang up without ending this process."""
        self._closing = True
        _hang_up(self._connection)

    def _listen(self) -> None:
        with (
            contextlib.suppress(OSError, ValueError),
            self._connection.makefile("r", encoding="utf-8") as lines,
        ):
            for line in lines:
                if isinstance(from_json(line), SaveAndStop):
                    self.stop_requested = True
        if not self._closing:
            os._exit(LOST_DRIVER_EXIT)


def _send(connection: socket.socket, message: Message) -> None:
    with contextlib.suppress(OSError):  # the thread that reads notices a broken connection
        connection.sendall((to_json(message) + "\n").encode())


def _hang_up(connection: socket.socket) -> None:
    """Shut down both directions: `close` without it waits for the thread that reads."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
