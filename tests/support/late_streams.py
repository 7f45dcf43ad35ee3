"""Streams of a card that runs what a side stream should do as late as it may."""

import contextlib
import threading

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class LateStreams:
    """Stands in for `torch.cuda` in a SideCopy, on a CPU: what the side stream should copy is
    copied when something waits for it.

    So a copy has what a tensor holds at the last moment at which a card may read it. `order` has
    what happened.
    """

    def __init__(self):
        self.order = []
        self._copies = []
        self._lock = threading.Lock()

    def Stream(self):
        return self

    def Event(self, *, blocking):
        assert blocking  # else a thread that waits would take a core
        return self

    def current_stream(self):
        return self

    @contextlib.contextmanager
    def stream(self, side):
        with _Late(self._copies):
            yield
        self.order.append("copies begin")

    def wait_stream(self, main):
        self.order.append("the side stream waits for the step")

    def record(self, side):
        """Do nothing: all copies so far belong to the event."""

    def wait_event(self, event):
        self._copy()
        self.order.append("the card waits for the copies")

    def synchronize(self):
        self._copy()
        self.order.append("the host waits for the copies")

    def _copy(self):
        with self._lock:
            while self._copies:
                self._copies.pop(0)()


class _Late(TorchDispatchMode):
    """Keeps copies for later."""

    def __init__(self, copies):
        super().__init__()
        self._copies = copies

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is not aten.copy_:
            return func(*args, **(kwargs or {}))
        target, source, non_blocking = args
        assert non_blocking
        self._copies.append(lambda: target.copy_(source))
        return target
