"""How rank 0 talks to the other ranks about saves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

# What rank 0 says.
GO_ON, USE_MEMORY, COPY = range(3)


class Channel:
    """Two groups of all ranks over gloo, which never waits for a card.

    In the group `said`, rank 0 talks to the other ranks, which listen at every point where rank 0
    may save. In the group `done`, threads wait for copies and uploads. Every rank makes its channel
    at the same time.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        from pion.train.gradients import LONGEST

        self.said: Any = dist.new_group(backend="gloo", timeout=LONGEST)  # process groups
        self.done: Any = dist.new_group(backend="gloo", timeout=LONGEST)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let the other ranks listen while the block of rank 0 may save."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # a rank may be gone, which is not the news
                self.say(GO_ON)
            raise
        self.say(GO_ON)

    def say(self, word: int) -> int:
        """Return what rank 0 says."""
        import torch
        import torch.distributed as dist

        said = torch.tensor(word)
        dist.broadcast(said, src=0, group=self.said)
        return int(said)

    def tell(self, about: Any) -> Any:
        """Return what rank 0 tells."""
        import torch.distributed as dist

        told = [about]
        dist.broadcast_object_list(told, src=0, group=self.said)
        return told[0]

    def of_all_ranks(self, mine: Any) -> list[Any]:
        """Return what each rank has."""
        import torch.distributed as dist

        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine, group=self.said)
        return every

    def send(self, text: str, rank: int) -> None:
        """Send a text that is not empty to a rank that receives. Raises RuntimeError if it is
        gone."""
        import torch
        import torch.distributed as dist

        # Both exist before the size is sent: the other rank then waits for the data.
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        size = torch.tensor(data.numel())
        dist.send(size, dst=rank, group=self.done)
        dist.send(data, dst=rank, group=self.done)

    def receive(self, rank: int) -> str:
        """Return the text that a rank sends. Raises RuntimeError if the rank is gone."""
        import torch
        import torch.distributed as dist

        size = torch.zeros((), dtype=torch.int64)
        dist.recv(size, src=rank, group=self.done)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, src=rank, group=self.done)
        return bytes(data.tolist()).decode()

    def close(self) -> None:
        """Leave the groups."""
        import torch.distributed as dist

        for group in (self.said, self.done):
            dist.destroy_process_group(group)
