"""Communication between the ranks of a training run. A single rank does not communicate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The group of all ranks. Every rank calls the same methods in the same order."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._control: Any = None  # process group
        if world_size > 1:
            # Ranks agree to stop over gloo, because gloo never waits for the GPU.
            gloo = dist.get_backend() == "gloo"
            self._control = dist.group.WORLD if gloo else dist.new_group(backend="gloo")

    def sum(self, value: Tensor) -> Tensor:
        """Return the tensor summed over ranks, on its device and in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        asked = torch.tensor(int(flag))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._control)
        return bool(asked)

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def copy_from_rank_0(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)
