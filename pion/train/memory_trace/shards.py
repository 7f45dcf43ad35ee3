"""The memory that FSDP2 needs next to a model's own tensors: gathered weights, and gradients on
their way to the ranks that keep them.

Ranks keep even parts of each weight, and gather the weights of a *group* before it computes: those
of a block, or all others (pion/train/sharding.py). A group is received in one buffer, and its
weights are copied out of the buffer. In the forward pass, the buffer stays until the next group has
come; in the backward pass, the next group is received ahead. Gradients are copied into one buffer
in fp32, which stays until the backward pass of the next group has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from pion.config.parts import Role
from pion.model.decoder import Decoder
from pion.model.parameters import parameter_roles
from pion.model.skips_and_value_tables import ValueTables
from pion.train.memory_trace.live_bytes import rounded
from pion.train.shard_rules import KEPT_WHOLE, part_of, sharded_dim


@dataclass(frozen=True)
class Shards:
    """The bytes of a group of weights, on the rank that keeps the most.

    Attributes:
        gathered: all weights, in the dtypes that they are computed with.
        given: this rank's part of the weights that are gathered in bf16, copied to be sent.
        stacks: of `gathered`, the stacks of matrices of which each rank has a part of every
            matrix. They are copied once more.
        gradients: all gradients, in the dtypes that they are computed in.
        summed: all gradients in fp32, as they are sent.
        gradients_kept: the gradients that this rank keeps, in fp32.
    """

    gathered: int = 0
    given: int = 0
    stacks: int = 0
    gradients: int = 0
    summed: int = 0
    gradients_kept: int = 0

    @property
    def arriving(self) -> int:
        """The bytes while a group is received."""
        return self.gathered + self.given

    @property
    def copied_out(self) -> int:
        """The bytes while the weights are copied out of the buffer, which is one of two."""
        return 2 * self.gathered + self.stacks

    @property
    def leaving(self) -> int:
        """The bytes while gradients are sent to the ranks that keep them."""
        return self.summed + max(self.gradients + 2 * self.stacks, self.gradients_kept)


NOTHING = Shards()


@dataclass(frozen=True)
class Groups:
    """The groups of a model: each block, each value table, and the rest, which stays gathered."""

    blocks: list[Shards]
    tables: list[Shards]
    rest: Shards

    @property
    def at_the_end(self) -> int:
        """The bytes when the backward pass has ended: the gradients of all but the blocks are
        whole, and one group after the other sends its own."""
        last = (*self.tables, self.rest)
        all_gradients = sum(group.gradients for group in last)
        return all_gradients + max(group.leaving - group.gradients for group in last)


NO_GROUPS = Groups([], [], NOTHING)


def groups_of(model: Decoder, ranks: int) -> Groups:
    """Return the groups of a model whose weights have the dtypes of gathered ones."""
    blocks = [list(block.parameters()) for block in model.layers]
    tables = [list(table.parameters()) for table in tables_of(model)]
    apart = {id(weight) for group in (*blocks, *tables) for weight in group}
    rest = [weight for weight in model.parameters() if id(weight) not in apart]
    roles = {model.get_parameter(name): role for name, role in parameter_roles(model).items()}

    def of(weights: Iterable[nn.Parameter]) -> Shards:
        weight_roles = ((weight, roles[weight]) for weight in weights)
        return shards_of([each for each in weight_roles if each[1] not in KEPT_WHOLE], ranks)

    return Groups(list(map(of, blocks)), list(map(of, tables)), of(rest))


def tables_of(model: Decoder) -> list[nn.Module]:
    """Return the value tables, each of which is gathered for itself."""
    return [
        table
        for part in model.shared_parts()
        if isinstance(part, ValueTables)
        for table in part.tables
    ]


def kept_whole(model: Decoder) -> list[nn.Parameter]:
    """Return the weights that each rank keeps whole."""
    roles = parameter_roles(model)
    return [weight for name, weight in model.named_parameters() if roles[name] in KEPT_WHOLE]


def shards_of(weights: Iterable[tuple[nn.Parameter, Role]], ranks: int) -> Shards:
    """Return what the group of these weights needs, each of which comes with its role."""
    gathered = given = stacks = gradients = summed = kept = 0
    for weight, role in weights:
        width, part = weight.element_size(), part_of(weight.shape, ranks, role)
        gathered += rounded(width * part * ranks)
        given += 0 if width == 4 else width * part
        stacks += width * part * ranks if sharded_dim(weight.shape, ranks, role) else 0
        if weight.requires_grad:
            gradients += rounded(width * weight.numel())
            summed += 4 * part * ranks
            kept += 4 * part
    return Shards(gathered, given, stacks, gradients, summed, kept)
