"""Give all ranks the weights that each of them has updated.

A rank sends the elements that it owns (ownership.py), in fp32, and gets those of all other ranks.
So all ranks have the bits that one rank would have.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.distributed as dist
from torch import Tensor

# What a rank gets at once, at most: all weights together may be larger than what is free.
GATHERED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Window:
    """What the ranks exchange at once: `parts` are views of weights, by rank."""

    parts: list[list[Tensor]]
    elements: int  # that each rank sends: those of the rank that has the most


class SharedWeights:
    """The weights that ranks own in parts, by the group that is trained together.

    `rank` is this rank.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._parts: dict[Hashable, list[list[Tensor]]] = {}
        # By the groups that are trained: they change only between phases.
        self._windows: dict[tuple[Hashable, ...], list[_Window]] = {}

    def add(self, group: Hashable, parts: Sequence[Sequence[Tensor]]) -> None:
        """Add weights of a group: flat views, by the rank that owns them."""
        known = self._parts.setdefault(group, [[] for _ in range(self._world_size)])
        for mine, more in zip(known, parts, strict=True):
            mine.extend(more)

    @torch.no_grad()
    def exchange(self, groups: Sequence[Hashable]) -> None:
        """Overwrite the parts of other ranks, in these groups, by what their owners have.

        Every rank calls this with the same groups. On a GPU the host does not wait.
        """
        key = tuple(group for group in groups if group in self._parts)
        if key not in self._windows:
            self._windows[key] = self._cut(key)
        for window in self._windows[key]:
            self._exchange(window)

    def _exchange(self, window: _Window) -> None:
        mine = window.parts[self._rank]
        like = next(part for parts in window.parts for part in parts)
        sent = like.new_empty(window.elements)
        if mine:
            torch.cat(mine, out=sent[: sum(part.numel() for part in mine)])
        got = like.new_empty(self._world_size * window.elements)
        dist.all_gather_into_tensor(got, sent)
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for rank, parts in enumerate(window.parts):
            if rank != self._rank and parts:
                sizes = [part.numel() for part in parts]
                begin = rank * window.elements
                targets.extend(parts)
                sources.extend(got[begin : begin + sum(sizes)].split(sizes))
        if targets:
            torch._foreach_copy_(targets, sources)

    def _cut(self, groups: Sequence[Hashable]) -> list[_Window]:
        """Return the windows, of which a rank gets at most `GATHERED_BYTES` each."""
        most = _most(self._world_size)
        by_rank = [
            _windows([part for group in groups for part in self._parts[group][rank]], most)
            for rank in range(self._world_size)
        ]
        return [
            _Window(list(parts), max(sum(part.numel() for part in each) for each in parts))
            for parts in zip_longest(*by_rank, fillvalue=[])
        ]


def exchange_bytes(params: int, ranks: int) -> int:
    """Return the most bytes at once while ranks exchange so many parameters."""
    owned = -(-params // ranks)
    return 4 * (ranks + 1) * min(owned, _most(ranks)) if ranks > 1 else 0


def _most(ranks: int) -> int:
    """Return the most elements that a rank sends at once."""
    return GATHERED_BYTES // (4 * ranks)


def _windows(parts: Sequence[Tensor], most: int) -> list[list[Tensor]]:
    """Cut a rank's parts into lists of `most` elements each."""
    windows: list[list[Tensor]] = []
    room = 0
    for part in parts:
        while part.numel():
            if room == 0:
                windows.append([])
                room = most
            taken, part = part[:room], part[room:]
            windows[-1].append(taken)
            room -= taken.numel()
    return windows
