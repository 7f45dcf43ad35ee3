"""Sockets inside another process's network namespace, and a bridge for connections between two.

A pod has its own loopback, so two pods can use the same ports. The bridge decides which connections
pass in or out, and can cut them at any time.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading

from tests.support.waiting import PATIENCE_SECONDS

# Runs inside the namespace. Brings up the loopback (SIOCSIFFLAGS: IFF_UP | IFF_RUNNING), then
# answers each port number with a listening socket, and 0 with an unconnected socket.
_SOCKETS = """
import fcntl, socket, struct
line = socket.socket(fileno=0)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
while word := line.recv(16):
    made = socket.socket()
    if int(word):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", int(word)))
        made.listen(128)
    socket.send_fds(line, [b"."], [made.fileno()])
    made.close()
"""


class Namespace:
    """The network namespace of process `pid`."""

    def __init__(self, pid):
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-SIc", _SOCKETS],
                stdin=theirs.fileno(),
            )

    def connect(self, port):
        """Connect to `port` on the namespace's loopback. Raises OSError."""
        made = self._make(0)
        try:
            made.connect(("127.0.0.1", port))
        except OSError:
            made.close()
            raise
        return made

    def listen(self, port):
        """Return a socket that listens on `port` of the namespace's loopback. Raises OSError."""
        return self._make(port)

    def close(self):
        self._line.close()
        self._process.wait(PATIENCE_SECONDS)

    def _make(self, port):
        with self._lock:
            self._line.send(str(port).encode())
            _, fds, *_ = socket.recv_fds(self._line, 1, 1)
        if not fds:
            raise ConnectionError("the network namespace is gone")
        return socket.socket(fileno=fds[0])


class Bridge:
    """Forwards connections of `listener` to the sockets that `connect` returns, until it is cut."""

    def __init__(self, listener, connect):
        self._listener, self._connect = listener, connect
        self._open = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self):
        return self._listener.getsockname()[1]

    def cut(self):
        """End every connection, and accept no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which `close` does not
        self._listener.close()
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near):
        try:
            far = self._connect()
        except OSError:
            near.close()
            return
        with near, far:
            with self._lock:
                self._open |= {near, far}
            back = threading.Thread(target=_pump, args=(far, near), daemon=True)
            back.start()
            _pump(near, far)
            back.join()
            with self._lock:
                self._open -= {near, far}


def _pump(source, target):
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def separate_network(pid):
    """Return whether process `pid` has another network namespace than this one. Raises OSError."""
    return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
