"""Count the bytes that are alive on the pretended card, and name what is alive at their peak.

Each storage counts until nothing refers to it, rounded up as torch's allocator rounds. What a real
kernel allocates inside itself is not seen, nor are CUDA's context and fragmentation.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.cuda_rehearsal.our_code import where
from tests.cuda_rehearsal.watch import Operation, Watch

# Torch's allocator rounds a request up to a multiple of this.
ROUNDED_TO = 512


class LiveBytes:
    """Counts the bytes of what `watch` sees.

    Attributes:
        live: the bytes that are alive now.
        peak: the most bytes that were alive at once since `start`.
        at_peak: what was alive then: the bytes by the operation and the line of our code that made
            them. This takes time, so it is kept only with `explain`.
    """

    def __init__(self, watch: Watch, *, explain: bool = False) -> None:
        watch.seen = self._see
        self._explain = explain
        self._known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()
        self._by_line: Counter[str] = Counter()
        self.live = self.peak = 0
        self.at_peak: dict[str, int] = {}

    def start(self) -> None:
        """Forget the peak so far. What is alive stays counted."""
        self.peak, self.at_peak = self.live, {}

    def _see(self, operation: Operation) -> None:
        for leaf in tree_leaves(operation.result):
            if isinstance(leaf, Tensor) and leaf.device.type == "cuda":
                self._count(leaf, operation.func)

    def resized(self, tensor: Tensor) -> None:
        """Count the storage of a tensor again: no operation says that a storage is resized."""
        if tensor.is_cuda:
            self._count(tensor, "resized")

    def _count(self, tensor: Tensor, operation: Any) -> None:
        storage = tensor.untyped_storage()
        size = -(-storage.nbytes() // ROUNDED_TO) * ROUNDED_TO
        known = self._known.get(storage)
        if known is None:
            line = f"{operation} at {where()}" if self._explain else ""
            known = self._known[storage] = _Known(line)
            weakref.finalize(storage, self._change, known, 0)
        if size != known.size:
            self._change(known, size)

    def _change(self, known: _Known, size: int) -> None:
        self.live += size - known.size
        self._by_line[known.line] += size - known.size
        known.size = size
        if self.live > self.peak:
            self.peak = self.live
            if self._explain:
                self.at_peak = {line: size for line, size in self._by_line.items() if size}


@dataclass
class _Known:
    """A storage that is alive: the operation and the line that made it, and its bytes."""

    line: str
    size: int = 0
