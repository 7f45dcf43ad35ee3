"""Forward and backward passes over micro-batches, and communication between the ranks of a run."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from pion.data.stream import Batch, to_device
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.train.buckets import Buckets, in_order_of_backward
from pion.train.micro_batch_graphs import MicroBatchGraphs
from pion.train.objective import Measured, Objective

if TYPE_CHECKING:
    from pion.train.sharding import Shards

# Rank 0 may wait for its store for so long, and the other ranks for rank 0.
LONGEST = timedelta(hours=24)


class Gradients:
    """Computes the gradients of an objective, in `dtype`, on the device of `model`.

    The auxiliary losses are means over the rows of a step, of all ranks. Every rank calls the same
    methods in the same order, but ranks may add different numbers of micro-batches: unless the
    model is sharded.
    """

    def __init__(
        self,
        model: Decoder,
        dtype: torch.dtype,
        world_size: int,
        shards: Shards | None = None,
    ) -> None:
        self._model, self._dtype, self._aux_scale = model, dtype, 1.0
        self._device = model.embed.weight.device
        self._shards = shards
        params = in_order_of_backward(model) if shards is None else shards.kept_whole()
        # Alone, a rank has no buckets: its first micro-batch makes the gradients.
        self.buckets = Buckets(params) if world_size > 1 and params else None
        self.graphs = MicroBatchGraphs(model, dtype, world_size)

    def begin(self, rows: int) -> None:
        """Begin a step over so many rows of all ranks, which has no gradients yet."""
        self._aux_scale = 1 / rows
        self.graphs.begin()
        if self._shards is not None:
            self._shards.clear()
        if self.buckets is not None:
            self.buckets.clear()

    def add(
        self,
        batch: Batch,
        objective: Objective,
        options: StepOptions,
        *,
        last: bool,
        counts: bool = True,
    ) -> Measured:
        """Add the gradients of the objective and of the auxiliary losses.

        `last` says whether this is the rank's last micro-batch of the step. One that does not count
        adds gradients of 0: the ranks of a sharded model compute together.

        Return what the micro-batch adds to the step, without gradient, until the next call.
        """
        if (graphed := self.graphs.add(batch, objective, options, self._computed)) is not None:
            return graphed
        # Of a sharded model, few gradients are in buckets, and FSDP sums the others meanwhile.
        buckets = self.buckets if last and self._shards is None else None
        batch = to_device(batch, self._device)
        return self._computed(batch, objective, options, buckets, counts=counts)

    def sum_over_ranks(self) -> None:
        """Replace the gradients by their sums over ranks. A rank may have added none.

        Of a sharded model, `Shards.learned` gets the rank's parts of them.
        """
        if self.buckets is not None:
            self.buckets.finish()
        if self._shards is not None:
            self._shards.hand_over_gradients()

    def _computed(
        self,
        batch: Batch,
        objective: Objective,
        options: StepOptions,
        buckets: Buckets | None = None,
        *,
        counts: bool = True,
    ) -> Measured:
        """Do what `add` does with a micro-batch on the device, and return what `add` returns.

        The backward pass sends the buckets.
        """
        bf16 = self._dtype == torch.bfloat16
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            loss, aux, stats, measures = objective.measured(self._model, batch, options)
            total = loss + aux * self._aux_scale
        with nullcontext() if buckets is None else buckets.summing():
            (total if counts else total * 0).backward()
        return Measured(loss.detach(), aux.detach(), stats, measures)


class Ranks:
    """The group of all ranks. Every rank calls the same methods in the same order."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._control: Any = None  # process group
        if world_size > 1:
            # Ranks agree to stop over gloo, because gloo never waits for the GPU.
            gloo = dist.get_backend() == "gloo"
            self._control = (
                dist.group.WORLD if gloo else dist.new_group(backend="gloo", timeout=LONGEST)
            )

    def sum(self, value: Tensor) -> Tensor:
        """Return the tensor summed over ranks, on its device and in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return bool(self.most(int(flag)))

    def most(self, count: int) -> int:
        """Return the largest number of all ranks."""
        if self.world_size == 1:
            return count
        largest = torch.tensor(count)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._control)
        return int(largest)

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on every rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]
