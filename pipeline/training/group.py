"""The processes that train together, and what rank 0 tells the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    """This process among the processes that train together."""

    rank: int = 0
    world_size: int = 1
    distributed: bool = False

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value, on every rank."""
        if not self.distributed:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait_for_all(self) -> None:
        """Block until every rank is here."""
        if self.distributed:
            import torch.distributed as dist

            dist.all_gather_object([None] * self.world_size, None)
