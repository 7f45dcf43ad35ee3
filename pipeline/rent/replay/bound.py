"""The least that a run can cost on a market if all spells are known in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.rent.replay.costs import Paid


@dataclass(frozen=True)
class BoundTerms:
    """What the bound needs: the `work` in seconds, the `boot` of a machine in seconds, and the
    prices of an hour."""

    work: float
    boot: float
    spot: float
    on_demand: float


def least_cost(terms: BoundTerms, spells: Sequence[float]) -> Paid:
    """Return what the cheapest choice pays for, given the seconds of every spell of spot.

    Nothing is lost, no save takes time, and whatever spot does not do fits on one machine on
    demand. The longest spells are used first, as each costs one boot. No run can be cheaper, and
    some of these choices can't be made in time, so this is a lower bound.
    """
    best = Paid(0.0, terms.work + terms.boot)
    done = used = 0.0
    for spell in sorted(spells, reverse=True):
        gained = min(spell - terms.boot, terms.work - done)
        if gained <= 0:
            break
        done += gained
        used += gained + terms.boot
        left = terms.work - done
        choice = Paid(used, left + terms.boot if left > 0 else 0.0)
        if choice.dollars(terms.spot, terms.on_demand) < best.dollars(terms.spot, terms.on_demand):
            best = choice
    return best
