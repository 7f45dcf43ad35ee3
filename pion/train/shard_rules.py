"""How ranks divide a model among them: which weights, and in which dimension (sharding.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pion.config.parts import Role
from pion.model.decoder import OWN_RULES, ROLES_IN_FP32

# What each rank keeps whole, in fp32: it is small, or `Decoder` reads it outside its block.
KEPT_WHOLE = ROLES_IN_FP32 - OWN_RULES.keys()


def sharded_dim(shape: Sequence[int], ranks: int, role: Role) -> int:
    """Return the dimension in which a parameter is divided: the first, so that rows stay whole.

    With more ranks than experts, the rows of each expert are divided, if they can be evenly. A bank
    of primitives is divided between them: its optimizer counts the steps of each.
    """
    experts = role == "matrix" and len(shape) == 3
    return 1 if experts and ranks > shape[0] and shape[1] % ranks == 0 else 0


def own_rows(rows: int, rank: int, ranks: int) -> range:
    """Return which rows a rank has, of those of the dimension that is divided."""
    most = -(-rows // ranks)
    return range(min(rank * most, rows), min((rank + 1) * most, rows))


def part_of(shape: Sequence[int], ranks: int, role: Role) -> int:
    """Return the elements that a rank keeps of a weight: whole rows. The last parts are filled up,
    so that all are equal."""
    rows = shape[sharded_dim(shape, ranks, role)]
    return -(-rows // ranks) * (math.prod(shape) // rows)
