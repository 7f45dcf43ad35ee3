"""Bring what other ranks have of the training state into the memory of rank 0's snapshot.

Only rank 0 saves, and only rank 0 decides when. Of a sharded model, each rank has pieces of the
weights and of the moments. Of any other, rank 0 has all, and no rank has pieces. At every point
where rank 0 may save, the other ranks listen: rank 0 asks them to copy, or tells them to go on. So
ranks never disagree about what is saved.

A rank on rank 0's machine copies its pieces into rank 0's memory. Any other rank copies them into
memory of its own, and sends them from there. On a card, both happen next to the next step. A thread
of each rank tells rank 0's thread when its pieces are there, and only then rank 0 writes files.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.state.checkpoints.memory_file import MemoryFile, PageLocks

if TYPE_CHECKING:
    import torch

    from pion.train.optimizer.state_pieces import Piece
    from pion.train.side_copy import SideCopy

# What rank 0 says.
GO_ON, USE_MEMORY, COPY = range(3)
# What another rank says when its copies are done.
COPIED, SENDS, FAILED = range(3)

# The name, the first element and the number of elements of a piece.
Place = tuple[str, int, int]


class _Channel:
    """Two groups of all ranks over gloo, which never waits for a card.

    In the group `said`, rank 0 talks to the other ranks, which listen at every point where rank 0
    may save. In the group `done`, threads wait for copies. Every rank makes its channel at the same
    time.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        from pion.train.gradients import LONGEST

        self.said: Any = dist.new_group(backend="gloo", timeout=LONGEST)  # process groups
        self.done: Any = dist.new_group(backend="gloo", timeout=LONGEST)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let the other ranks listen, by `follow`, while the block of rank 0 may save."""
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

        signal = torch.tensor(word)
        dist.broadcast(signal, src=0, group=self.said)
        return int(signal)

    def tell(self, about: Any) -> Any:
        """Return what rank 0 tells."""
        import torch.distributed as dist

        message = [about]
        dist.broadcast_object_list(message, src=0, group=self.said)
        return message[0]

    def of_all_ranks(self, mine: Any) -> list[Any]:
        """Return what each rank has."""
        import torch.distributed as dist

        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine, group=self.said)
        return every

    def close(self) -> None:
        """Leave the groups."""
        import torch.distributed as dist

        for group in (self.said, self.done):
            dist.destroy_process_group(group)


class OtherRanks(_Channel):
    """The other ranks, as rank 0 sees them. Every rank makes one of the two classes, at once.

    `pieces` are those of rank 0.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._places: list[list[Place]] = self.of_all_ranks(_places(pieces))
        self._known: tuple[MemoryFile, Mapping[str, int]] | None = None
        self._copying = False

    def begin(self, fd: int, offsets: Mapping[str, int]) -> None:
        """Let each rank begin to copy its pieces into the memory behind `fd`.

        `offsets` has the first byte of each tensor.
        """
        memory = (MemoryFile.of(fd), dict(offsets))
        if memory != self._known:
            self.say(USE_MEMORY)
            self.tell(memory)
            self._known = memory
        self.say(COPY)
        self._copying = True

    def wait(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Block until the pieces of all ranks are in `tensors`, which are in that memory.

        Raises RuntimeError if a rank is gone, or could not copy.
        """
        import torch
        import torch.distributed as dist

        if not self._copying:
            return
        self._copying = False
        for rank in range(1, len(self._places)):
            answer = torch.zeros((), dtype=torch.int64)
            dist.recv(answer, src=rank, group=self.done)
            if int(answer) == FAILED:
                raise RuntimeError(f"worker {rank} could not copy its part of the training state")
            if int(answer) == SENDS:
                for name, start, count in self._places[rank]:
                    part = tensors[name].view(-1)[start : start + count]
                    dist.recv(part, src=rank, group=self.done)


class CopiesForRankZero(_Channel):
    """The copies that another rank than rank 0 makes of its `pieces`, by `side_copy`."""

    def __init__(self, pieces: Sequence[Piece], side_copy: SideCopy) -> None:
        super().__init__()
        self._pieces, self._side_copy = pieces, side_copy
        self.of_all_ranks(_places(pieces))
        self._targets: list[torch.Tensor] = []
        self.in_rank_0 = False
        self._locks = PageLocks()
        self._thread: threading.Thread | None = None

    def follow(self) -> None:
        """Copy whenever rank 0 asks, until rank 0 goes on."""
        while (signal := self.say(GO_ON)) != GO_ON:
            if signal == USE_MEMORY:
                self._use(*self.tell(None))
            else:
                self._copy()

    def close(self) -> None:
        """Wait for the last copies, and let go of the memory."""
        self._join()
        self._locks.unlock()
        self._targets = []
        super().close()

    def _use(self, memory: MemoryFile, offsets: Mapping[str, int]) -> None:
        """Copy into this memory from now on, or else into memory of this process."""
        import torch

        self._join()
        self._locks.unlock()
        fd = memory.open()
        self.in_rank_0 = fd is not None
        if fd is None:
            self._targets = [torch.empty_like(each.values, device="cpu") for each in self._pieces]
        else:
            buffer = torch.frombuffer(mmap.mmap(fd, memory.size), dtype=torch.uint8)
            os.close(fd)
            self._targets = [_place(buffer, offsets[piece.name], piece) for piece in self._pieces]
        if any(piece.values.is_cuda for piece in self._pieces):
            self._locks.lock((target.data_ptr(), target.nbytes) for target in self._targets)

    def _copy(self) -> None:
        self._join()
        sources = [piece.values for piece in self._pieces]
        self._side_copy.begin(zip(self._targets, sources, strict=True))
        self._thread = threading.Thread(target=self._tell, name="copy for rank 0", daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        """Tell rank 0 that the copies are done, and send them if rank 0's memory is elsewhere."""
        import torch
        import torch.distributed as dist

        answer = COPIED if self.in_rank_0 else SENDS
        try:
            self._side_copy.wait()
        except RuntimeError:  # the card failed, which the next step says
            answer = FAILED
        with contextlib.suppress(RuntimeError):  # rank 0 is gone, which the next step says
            dist.send(torch.tensor(answer), dst=0, group=self.done)
            for target in self._targets if answer == SENDS else ():
                dist.send(target, dst=0, group=self.done)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _places(pieces: Sequence[Piece]) -> list[Place]:
    return [(piece.name, piece.start, piece.values.numel()) for piece in pieces]


def _place(buffer: torch.Tensor, offset: int, piece: Piece) -> torch.Tensor:
    """Return the elements of the memory that are those of the piece."""
    width = piece.values.element_size()
    begin = offset + piece.start * width
    flat = buffer[begin : begin + piece.values.nbytes].view(piece.values.dtype)
    return flat.view(piece.values.shape)
