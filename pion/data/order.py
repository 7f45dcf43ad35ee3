"""The order of training rows: a pure function of (data fingerprint, seed, row number).

Any row of any epoch is found without visiting the rows before it. A resumed, moved or rescaled run
therefore trains on exactly the same rows as an uninterrupted one. Everything is integer arithmetic
keyed by BLAKE2b, so the order never changes with a library's version.

In each epoch the shards are put into a seeded order and grouped into windows of ``window`` shards.
Within a window the rows are permuted by a bijection of their indices. A reader therefore needs the
shards of only one window at a time.
"""

import hashlib
import json
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from math import inf, isqrt, lcm

from pion.errors import BadInput

# The quotas of a mixture are exact in every block of this many rows.
BLOCK = 1024
# The rounds of a permutation's Feistel network.
ROUNDS = 8
# How many epochs, or blocks of a mixture, are kept in memory.
CACHED = 4


def key_of(*parts: object) -> bytes:
    """Return 16 bytes that stand for ``parts`` (JSON values)."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


class Permutation:
    """A keyed bijection of ``range(size)``, computed index by index.

    This is a Feistel network over pairs (a, b) in Z_width x Z_height, where width · height is the
    smallest near-square product of at least ``size``. An index beyond ``size`` is permuted again
    until it is within, which takes less than two tries on average (Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains").
    """

    def __init__(self, size: int, key: bytes) -> None:
        self.size, self.key = size, key
        self.width = isqrt(size - 1) + 1
        self.height = -(-size // self.width)

    def __call__(self, index: int) -> int:
        while True:
            a, b = divmod(index, self.height)
            for r in range(0, ROUNDS, 2):
                a = (a + self._mix(r, b)) % self.width
                b = (b + self._mix(r + 1, a)) % self.height
            index = a * self.height + b
            if index < self.size:
                return index

    def _mix(self, round_number: int, value: int) -> int:
        message = self.key + struct.pack("<BQ", round_number, value)
        return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class _Epoch:
    """One epoch's shards in order, with the row at which each shard and each window starts."""

    shards: list[int]
    starts: list[int]
    windows: list[Permutation]
    window_starts: list[int]


class RowOrder:
    """The order of one data set's rows.

    Args:
        shard_rows: number of rows in each shard.
        fingerprint: of the data set.
        window: number of shards that are mixed with each other. It is part of the order, so it
            depends on the job and never on the size of a disk.

    Raises:
        BadInput: there are no rows, or ``window`` is below 1.
    """

    def __init__(self, shard_rows: Sequence[int], fingerprint: str, seed: int, window: int) -> None:
        self.shard_rows = list(shard_rows)
        self.total_rows = sum(self.shard_rows)
        self.fingerprint, self.seed, self.window = fingerprint, seed, window
        self._epoch = lru_cache(maxsize=CACHED)(self._make_epoch)
        if self.total_rows == 0:
            raise BadInput("the data set has no rows: an empty corpus, or less text than one row.")
        if window < 1:
            raise BadInput(f"data window {window}: at least 1 shard must be read at a time.")

    def locate(self, i: int) -> tuple[int, int]:
        """Return the shard of training row ``i`` >= 0, and the row's number in that shard.

        Epochs follow each other without end.
        """
        number, offset = divmod(i, self.total_rows)
        epoch = self._epoch(number)
        w = bisect_right(epoch.window_starts, offset) - 1
        start = epoch.window_starts[w]
        row = start + epoch.windows[w](offset - start)
        s = bisect_right(epoch.starts, row) - 1
        return epoch.shards[s], row - epoch.starts[s]

    def shards_ahead(self, i: int, n: int) -> list[int]:
        """Return the first ``n`` distinct shards needed from row ``i`` on, its window's first."""
        return [shard for _, shard in self.needs_ahead(i, n)]

    def needs_ahead(self, i: int, n: int) -> list[tuple[int, int]]:
        """Return ``shards_ahead``, each with the first row from ``i`` on that may need it."""
        wanted = min(n, sum(rows > 0 for rows in self.shard_rows))
        needs: dict[int, int] = {}
        number, offset = divmod(i, self.total_rows)
        while len(needs) < wanted:
            epoch = self._epoch(number)
            first = bisect_right(epoch.window_starts, offset) - 1
            for w in range(first, len(epoch.windows)):
                if len(needs) >= wanted:
                    break
                at = max(i, number * self.total_rows + epoch.window_starts[w])
                for shard in epoch.shards[w * self.window : (w + 1) * self.window]:
                    needs.setdefault(shard, at)
            number, offset = number + 1, 0
        return [(at, shard) for shard, at in list(needs.items())[:wanted]]

    def _make_epoch(self, number: int) -> _Epoch:
        def drawn(shard: int) -> bytes:
            return key_of("shard", self.fingerprint, self.seed, number, shard)

        shards = sorted((s for s, rows in enumerate(self.shard_rows) if rows), key=drawn)
        starts = [0, *accumulate(self.shard_rows[s] for s in shards)]
        window_starts = starts[: -1 : self.window]
        ends = [*window_starts[1:], self.total_rows]
        windows = [
            Permutation(end - start, key_of("window", self.fingerprint, self.seed, number, w))
            for w, (start, end) in enumerate(zip(window_starts, ends))
        ]
        return _Epoch(shards, starts[:-1], windows, window_starts)


class MixtureOrder:
    """Rows of several data sets in exact proportion.

    Every block of 1,024 rows has quotas. After any number of blocks each source has given
    weight · rows, within less than one row. Within a block the sources take turns in a seeded
    order, and each source gives its rows in the source's own order, from row number ``begun`` on.
    If the mixture ends after ``end`` rows, its last block has the rest, too, and ends with it.

    Raises:
        BadInput: a weight is not positive, or so small that some blocks would have no such row.
    """

    def __init__(
        self,
        orders: Sequence[RowOrder],
        weights: Sequence[float | Fraction],
        seed: int,
        begun: Sequence[int] = (),
        end: int | None = None,
    ) -> None:
        if len(orders) != len(weights):
            raise ValueError(f"{len(orders)} sources but {len(weights)} weights")
        positive = all(0 < weight < inf for weight in weights)
        fractions = [Fraction(str(w)) for w in weights] if positive else []  # 0.1 is a tenth
        if not positive or min(fractions) * BLOCK < sum(fractions):
            raise BadInput(
                f"data weights {list(weights)}: each must be positive and at least 1/{BLOCK:,} of "
                f"their sum. Raise the smallest weight or remove its source."
            )
        self.orders, self._begun, self._end = list(orders), begun or [0] * len(orders), end
        self.total_rows = sum(order.total_rows for order in orders)
        scale = lcm(*(fraction.denominator for fraction in fractions))
        self._shares = [int(fraction * scale) for fraction in fractions]
        self._key = [seed, self._shares, [order.fingerprint for order in orders]]
        self._block = lru_cache(maxsize=CACHED)(self._make_block)

    def locate(self, i: int) -> tuple[int, int, int]:
        """Return the source, the shard and the row's number in it of training row ``i`` >= 0."""
        first, stop = self._block_of(i)
        source, index = self._block(first, stop)[i - first]
        return source, *self.orders[source].locate(self._begun[source] + index)

    def shards_ahead(self, i: int, n: int) -> list[tuple[int, int]]:
        """Return the first ``n`` distinct (source, shard) needed from row ``i`` on, to the end."""
        begin, stop = self._block_of(i)
        taken, total = self.taken(begin), sum(self._shares)
        for source, _ in self._block(begin, stop)[: i - begin]:
            taken[source] += 1
        needs = [
            ((at - first) / self._shares[source] * total + i, source, shard)
            for source, order in enumerate(self.orders)
            for first in [self._begun[source] + taken[source]]
            for at, shard in order.needs_ahead(first, n)
        ]
        end = inf if self._end is None else self._end
        needs.sort(key=lambda need: need[0])
        return [(source, shard) for at, source, shard in needs[:n] if at < end]

    def _block_of(self, i: int) -> tuple[int, int]:
        """Return the first row of the block of row ``i``, and of the block after it."""
        first = i // BLOCK * BLOCK
        if self._end is None or first + 2 * BLOCK <= self._end:
            return first, first + BLOCK
        return min(first, max(0, self._end // BLOCK - 1) * BLOCK), self._end

    def _make_block(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return, for each row of a block, its source and its number in that source."""
        taken, after = self.taken(first), self.taken(stop)
        slots = [s for s, (a, b) in enumerate(zip(taken, after)) for _ in range(b - a)]
        permuted = Permutation(len(slots), key_of("block", first // BLOCK, *self._key))
        rows = []
        for source in (slots[permuted(slot)] for slot in range(len(slots))):
            rows.append((source, taken[source]))
            taken[source] += 1
        return rows

    def taken(self, rows: int) -> list[int]:
        """Return how many rows each source has given after the ``rows`` of whole blocks.

        These are differences of rounded-down cumulative shares. They add up to all rows, and each
        is within one row of its share. They never decrease, because each share is at least one row
        per block.
        """
        total = sum(self._shares)
        ends = [rows * share // total for share in accumulate(self._shares, initial=0)]
        return [end - start for start, end in pairwise(ends)]


def step_rows(
    next_row: int, global_batch: int, skipped: Sequence[tuple[int, int]] = ()
) -> tuple[list[int], int]:
    """Return the row numbers of one optimizer step, and the ``next_row`` after it.

    Args:
        next_row: first row not yet trained on.
        skipped: ``[start, end)`` ranges that are left out on purpose after a loss spike.
    """
    rows: list[int] = []
    ranges = sorted(skipped)
    while len(rows) < global_batch:
        end = next((b for a, b in ranges if a <= next_row < b), None)
        if end is None:
            rows.append(next_row)
            next_row += 1
        else:
            next_row = end
    return rows, next_row


def rows_per_rank(global_batch: int, world_size: int) -> int:
    """Return the number of a step's rows on the rank that has the most."""
    return -(-global_batch // world_size)


def rank_rows(rows: Sequence[int], rank: int, world_size: int, micro_batch: int) -> list[list[int]]:
    """Return the micro-batches of rank ``rank``: its contiguous share of a step's rows, cut into
    pieces of ``micro_batch``. Shares differ by at most one row; the last piece may be smaller.

    Raises:
        BadInput: there are fewer rows than ranks.
    """
    if len(rows) < world_size:
        raise BadInput(
            f"global_batch {len(rows)} is too small for {world_size} workers: each needs a row. "
            f"Use at most {len(rows)} workers or raise global_batch."
        )
    share = rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]
    return [list(share[start : start + micro_batch]) for start in range(0, len(share), micro_batch)]
