"""Copy the training state to the host while the card computes the next step.

The forward and backward passes read weights and moments. Only the update changes them. So the
copies run on a side stream next to these passes, and the update waits on the card until the copies
are done. The host waits only in `wait`, which a background thread calls.

On a CPU, the tensors are copied at once: copies and steps would share its cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class SideCopy:
    """Copies tensors that the next update changes. One thread begins copies and updates.

    `streams` is `torch.cuda`, whose side stream copies; None copies at once.
    """

    def __init__(self, streams: Any = None) -> None:
        self._streams = streams
        self._side: Any = None
        self._done: Any = None  # the event after the last copy
        # What the side stream still reads. Another tensor must not get this memory.
        self._sources: list[Tensor] = []

    @property
    def deferred(self) -> bool:
        """Whether copies may still run after `begin` has returned."""
        return self._streams is not None

    def begin(self, copies: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Copy, for each pair, the second tensor into the first one, which is on the host.

        The copies see what the operations before this call have computed. The host waits for them
        if the memory of the first tensors is not page-locked.
        """
        if self._streams is None:
            for target, source in copies:
                target.copy_(source.detach())
            return
        if self._side is None:
            self._side = self._streams.Stream()
        self._side.wait_stream(self._streams.current_stream())
        with self._streams.stream(self._side):
            for target, source in copies:
                target.copy_(source.detach(), non_blocking=True)
                self._sources.append(source)
            done = self._streams.Event(blocking=True)
            done.record(self._side)
        self._done = done

    def before_update(self) -> None:
        """Let the card finish the copies before what comes next. The host does not wait.

        Call this before anything changes the tensors, or frees their memory.
        """
        if self._sources:
            self._streams.current_stream().wait_event(self._done)
            self._sources = []

    def wait(self) -> None:
        """Block until the copies are done, from any thread. Raises RuntimeError if the card failed
        first."""
        if self._done is not None:
            self._done.synchronize()
