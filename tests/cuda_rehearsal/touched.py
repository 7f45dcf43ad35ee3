"""Count the bytes of a buffer that loads and stores touch.

A GPU moves nothing smaller than a sector of 32 bytes, so each sector that is touched counts once.
Where addresses depend on values, each load counts one element.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import sympy

SECTOR = 32  # bytes
# Addresses are listed one by one up to this number, and counted as if all were different above it.
MOST_LISTED = 1 << 22
# The same for what is no sum of strides: the expressions are slow.
MOST_EVALUATED = 1 << 12


class Access(Protocol):
    """A load or a store in a loop over variables from 0 to their sizes; inductor's MemoryDep."""

    @property
    def index(self) -> sympy.Expr: ...

    @property
    def var_names(self) -> tuple[sympy.Symbol, ...]: ...

    @property
    def size(self) -> tuple[sympy.Expr, ...]: ...


@dataclass(frozen=True)
class Addresses:
    """The elements o + Σ strideᵢ · jᵢ with 0 ≤ jᵢ < sizeᵢ, for each o of the offsets.

    `steps` has (stride, size). Its strides fall, and are above 0.
    """

    offsets: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]

    def count(self) -> int:
        """Return how many elements these are, if no two are the same."""
        return len(self.offsets) * math.prod(size for _, size in self.steps)

    def last(self) -> int:
        """Return the largest element."""
        return max(self.offsets) + sum(stride * (size - 1) for stride, size in self.steps)

    def listed(self) -> Any:
        """Return every element."""
        found = np.array(self.offsets)
        for stride, size in self.steps:
            found = (found[:, None] + stride * np.arange(size)).ravel()
        return found


def touched(accesses: Iterable[Access], whole: int, width: int) -> int:
    """Return the bytes that some accesses touch in a buffer of `whole` elements of `width` bytes.

    It is never more than the bytes of the buffer.
    """
    known = {access: addresses_of(access) for access in accesses}
    found = {addresses for addresses in known.values() if addresses is not None}
    loads = sum(_loads(access) for access, addresses in known.items() if addresses is None)
    most = min(whole, loads + sum(addresses.count() for addresses in found))
    if loads or any(addresses.count() >= whole for addresses in found):
        return most * width
    times, rest = _without_shared_steps(found, width)
    if sum(addresses.count() for addresses in rest) > MOST_LISTED:
        return most * width
    elements = np.concatenate([addresses.listed() for addresses in rest])
    sectors = np.unique(elements * width // SECTOR)
    return min(whole * width, times * len(sectors) * SECTOR)


def addresses_of(access: Access) -> Addresses | None:
    """Return the elements that an access touches; None if values decide, or it is not known."""
    rest = sympy.expand(access.index, identity=True)
    if not rest.free_symbols <= set(access.var_names):
        return None
    steps, others = [], []
    for variable, size in zip(access.var_names, access.size, strict=True):
        stride = rest.coeff(variable, 1)
        without = sympy.expand(rest - stride * variable)
        if not stride.is_Integer or stride < 0 or variable in without.free_symbols:
            others.append((variable, int(size)))
            continue
        rest = without
        if stride > 0 and size > 1:
            steps.append((int(stride), int(size)))
    if math.prod(size for _, size in others) > MOST_EVALUATED:
        return None
    names = [variable for variable, _ in others]
    places = itertools.product(*(range(size) for _, size in others))
    offsets = {int(rest.subs(dict(zip(names, place, strict=True)))) for place in places}
    return Addresses(tuple(sorted(offsets)), _merged(sorted(steps, reverse=True)))


def _loads(access: Access) -> int:
    return math.prod(int(size) for size in access.size)


def _merged(steps: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the steps with each two that continue each other as one."""
    merged: list[tuple[int, int]] = []
    for stride, size in steps:
        if merged and merged[-1][0] == stride * size:
            stride, size = stride, size * merged.pop()[1]
        merged.append((stride, size))
    return tuple(merged)


def _without_shared_steps(found: set[Addresses], width: int) -> tuple[int, set[Addresses]]:
    """Return how often a smaller set of addresses repeats in `found`, and the smaller set."""
    times = 1
    while True:
        first = {addresses.steps[:1] for addresses in found}
        if len(first) != 1 or first == {()}:
            return times, found
        ((stride, size),) = first.pop()
        if stride * width % SECTOR:
            return times, found
        rest = {Addresses(addresses.offsets, addresses.steps[1:]) for addresses in found}
        start = min(min(addresses.offsets) for addresses in rest)
        if max(addresses.last() for addresses in rest) - start >= stride:
            return times, found
        times, found = times * size, rest
