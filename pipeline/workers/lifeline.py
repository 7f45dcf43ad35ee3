"""The connection between the driver and its workers: progress one way, "stop" the other.

If the connection closes, the worker has lost its driver and exits at once, so no worker keeps
training after its driver was killed. The connection is plain TCP: it works between nodes, answers
within milliseconds (a preemption leaves seconds) and needs no other process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.console.messages import (
    FromWorker,
    Hello,
    Message,
    SaveAndStop,
    from_json,
    to_json,
)

LOST_DRIVER_EXIT = 75


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
        self._workers: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._stopping = False
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
        self._listener.close()
        with self._lock:
            for worker in self._workers.values():
                _hang_up(worker)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        rank = -1
        with connection, connection.makefile("r", encoding="utf-8") as lines:
            try:
                hello = from_json(lines.readline())
                if not isinstance(hello, Hello):
                    return
                if not secrets.compare_digest(str(hello.token), self.address.token):
                    return
                rank = hello.rank
                with self._lock:
                    self._workers[rank] = connection
                    if self._stopping:
                        _send(connection, SaveAndStop())
                for line in lines:
                    message = from_json(line)
                    if isinstance(message, FromWorker):
                        self._on_message(rank, message)
            except (OSError, ValueError):
                return
            finally:
                with self._lock:
                    if self._workers.get(rank) is connection:
                        del self._workers[rank]


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
        try:
            with self._connection.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    if isinstance(from_json(line), SaveAndStop):
                        self.stop_requested = True
        except (OSError, ValueError):
            pass
        if not self._closing:
            os._exit(LOST_DRIVER_EXIT)


def _send(connection: socket.socket, message: Message) -> None:
    try:
        connection.sendall((to_json(message) + "\n").encode())
    except OSError:
        # The thread that reads notices a broken connection.
        return


def _hang_up(connection: socket.socket) -> None:
    """Shut down both directions: `close` without it waits for the thread that reads."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
