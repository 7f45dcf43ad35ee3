"""Count the bytes of fake tensors that are alive, after each operation that makes some."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Torch's allocator on CUDA rounds a request up to a multiple of this.
ROUNDED_TO = 512


@dataclass(frozen=True)
class Peaks:
    """The bytes of one micro-batch, besides weights, their gradients and the optimizer's state.

    Attributes:
        activations: kept for the backward pass, before the loss.
        forward: the most in the forward pass, which includes the loss.
        backward: the most in the backward pass.
    """

    activations: int
    forward: int
    backward: int


class LiveBytes(TorchDispatchMode):
    """Counts the storages on one kind of device until nothing refers to them.

    Attributes:
        device_type: of the storages that are counted.
        live: the bytes that are alive now.
        history: `live` after each new storage. Whoever measures replaces the list.
        opened: the operations whose bodies are run, to see what they need inside.
    """

    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __init__(self, device_type: str, opened: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.device_type, self.opened = device_type, opened
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.live = 0
        self.history: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self.opened:
            with self:
                return self.opened[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.device.type == self.device_type:
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = size_of(tensor)
        self._known[storage] = size
        self.live += size
        self.history.append(self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


def rounded(size: int) -> int:
    """Return so many bytes as the allocator rounds them up."""
    return -(-size // ROUNDED_TO) * ROUNDED_TO


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's storage, as the allocator rounds them."""
    return rounded(tensor.untyped_storage().nbytes())
