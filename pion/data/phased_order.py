"""The order of training rows in phases: each phase has its mix of the sources and its row length.

A phase begins at a row of the run. All of it is a pure function of this row, the mixes and the
orders of the sources. A source that was read before continues where it stopped. The position of a
run stays one number, which counts rows as the data sets have them. A longer row is some rows that
follow each other in a shard, read as one.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter

from pion.data.order import BLOCK, MixtureOrder, RowOrder
from pion.errors import BadInput, told

# By source: its share of the rows, or its passes as text.
Mix = Mapping[str, float | str]


@dataclass(frozen=True)
class MixPhase:
    """What is read from row ``start`` on.

    Attributes:
        rows: how many rows the phase has. The last phase continues beyond them.
        mix: a share for each source that is read, or passes: ``4x`` reads the source four times in
            this phase. The other sources share what passes leave. None: as in the phase before.
        length: how many rows are read as one.
        order: another number reads the same rows in another order.
    """

    start: int
    rows: int
    mix: Mix | None = None
    length: int = 1
    order: int = 0


# The names of the sources, and what is read in each phase.
Mixes = tuple[Sequence[str], Sequence[MixPhase]]


def passes_of(share: float | str) -> Fraction | None:
    """Return the passes that ``4x`` stands for; None for a share.

    Raises:
        BadInput: the share is not above 0, or the text is no such number of passes.
    """
    text = str(share)
    try:
        number = Fraction(text.removesuffix("x"))
    except (ValueError, ZeroDivisionError):
        number = Fraction(0)
    if number <= 0 or isinstance(share, str) != text.endswith("x"):
        text = text.removesuffix(".0")
        raise BadInput(f"{text:.40} reads nothing: give a number above 0, or passes such as 4x")
    return number if isinstance(share, str) else None


def shares_of(mix: Mix, rows: Mapping[str, int], total: int) -> dict[str, Fraction]:
    """Return the exact share of each source of a mix in a phase of ``total`` rows.

    ``rows`` has the number of rows of each source. Some source has a share.

    Raises:
        BadInput: the passes fill the phase, or a source has fewer than 1 row in 1,024.
    """
    passes = {name: passes_of(share) for name, share in mix.items()}
    shares = {name: n * rows[name] / total for name, n in passes.items() if n is not None}
    others = {name: Fraction(str(mix[name])) for name, n in passes.items() if n is None}
    left = 1 - sum(shares.values())
    if left <= 0:
        name = max(shares, key=lambda name: shares[name])
        room = 1 - sum(share for other, share in shares.items() if other != name)
        raise BadInput(
            f"{mix[name]} {name} are {round(shares[name] * total):,} rows, and the phase has "
            f"{total:,}. At most {float(room * total / rows[name]):.2g}x, or a longer phase"
        )
    shares |= {name: left * share / sum(others.values()) for name, share in others.items()}
    few = next((name for name, share in shares.items() if share * BLOCK < 1), None)
    if few is not None:
        raise BadInput(f"{few} has fewer than 1 row in {BLOCK:,}. Raise its share, or remove it")
    return {name: shares[name] for name in mix}


class PhasedOrder:
    """Rows of several data sets, which have names, in phases.

    Attributes:
        total_rows: in all data sets together that are read.
        phases: as they were given; after a last phase with passes, what follows its rows.
        shares: of each phase, the share of each source that it reads.

    Raises:
        BadInput: a mix can't be read (see ``shares_of``), or a source has no row so long.
    """

    def __init__(
        self, orders: Mapping[str, RowOrder], phases: Sequence[MixPhase], seed: int
    ) -> None:
        self.phases, last = list(phases), phases[-1]
        if any(isinstance(share, str) for share in (last.mix or {}).values()):
            # Steps that are left out after a spike read rows beyond those that have the passes.
            self.phases.append(replace(last, start=last.start + last.rows, mix=None))
        self.shares: list[dict[str, Fraction]] = []
        self._mixtures: list[tuple[list[int], MixtureOrder]] = []
        names, begun = list(orders), dict.fromkeys(orders, 0)
        for number, phase in enumerate(self.phases):
            with told(f"pretrain.phases.{number}.mix: "):
                mixture = self._mixture(orders, phase, seed, begun)
            self._mixtures.append(([names.index(name) for name in self.shares[-1]], mixture))
            for name, taken in zip(self.shares[-1], mixture.taken(phase.rows // phase.length)):
                begun[name] += taken * phase.length
        read = {name for shares in self.shares for name in shares}
        self.total_rows = sum(orders[name].total_rows for name in read)

    def _mixture(
        self, orders: Mapping[str, RowOrder], phase: MixPhase, seed: int, begun: Mapping[str, int]
    ) -> MixtureOrder:
        length, other = phase.length, phase.order << 64  # 0 is the order of the job's seed
        longer = {}
        for name in self.shares[-1] if phase.mix is None else phase.mix:
            order = orders[name]
            shards = [rows // length for rows in order.shard_rows]
            if not any(shards):
                raise BadInput(
                    f"{name} has {order.total_rows:,} rows, and no {length} of them follow each "
                    "other, as longer rows need"
                )
            longer[name] = RowOrder(shards, order.fingerprint, order.seed + other, order.window)
        rows = phase.rows // length
        if phase.mix is None:
            self.shares.append(self.shares[-1])
        else:
            row_counts = {name: one.total_rows for name, one in longer.items()}
            self.shares.append(shares_of(phase.mix, row_counts, rows))
        return MixtureOrder(
            list(longer.values()),
            list(self.shares[-1].values()),
            seed + other,
            [begun[name] // length for name in longer],
            None if phase is self.phases[-1] else rows,
        )

    def _number_at(self, i: int) -> int:
        return bisect_right(self.phases, i, key=attrgetter("start")) - 1

    def length_at(self, i: int) -> int:
        """Return how many rows from row ``i`` on are read as one."""
        return self.phases[self._number_at(i)].length

    def locate(self, i: int) -> tuple[int, int, int]:
        """Return the source, the shard and the row's number in it of the row that begins at ``i``.

        A longer row is this row and those that follow it in the shard.
        """
        number = self._number_at(i)
        phase, (sources, mixture) = self.phases[number], self._mixtures[number]
        source, shard, row = mixture.locate((i - phase.start) // phase.length)
        return sources[source], shard, row * phase.length

    def shards_ahead(self, i: int, n: int) -> list[tuple[int, int]]:
        """Return the first ``n`` distinct (source, shard) needed from row ``i`` on."""
        later = list(zip(self.phases, self._mixtures))[self._number_at(i) :]
        needs = [
            (sources[source], shard)
            for phase, (sources, mixture) in later
            for source, shard in mixture.shards_ahead(max(0, i - phase.start) // phase.length, n)
        ]
        return list(dict.fromkeys(needs))[:n]
