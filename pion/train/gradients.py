"""Forward and backward passes over micro-batches, and communication between the ranks of a run."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pion.data.stream import Batch, to_device
from pion.model.decoder import Decoder
from pion.model.feedforward.dense import Stats
from pion.model.forward_pass import StepOptions


class _ScaledLoss(nn.Module):
    """The sum of the decoder's losses, each times its factor. DDP wraps the forward of a module."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, scale: Tensor, aux_scale: float, options: StepOptions
    ) -> tuple[Tensor, Tensor, Stats]:
        losses = self.model.losses(
            batch.tokens,
            batch.targets,
            positions=batch.positions,
            documents=batch.documents,
            options=options,
        )
        ce = losses.ce * scale
        return ce + losses.aux * aux_scale, ce, losses.stats


class Gradients:
    """Computes the gradients of `model`'s losses, in `dtype`, on the device of its weights.

    The auxiliary losses of each row are multiplied by `aux_scale`.
    """

    def __init__(
        self, model: Decoder, dtype: torch.dtype, world_size: int, *, aux_scale: float
    ) -> None:
        self._model, self._dtype, self._aux_scale = model, dtype, aux_scale
        self._device = model.embed.weight.device
        loss = _ScaledLoss(model)
        alone = world_size == 1
        self._ddp = None if alone else DistributedDataParallel(loss, gradient_as_bucket_view=True)
        self._loss = loss if self._ddp is None else self._ddp
        self._primed = False

    def add(
        self, batch: Batch, scale: Tensor, options: StepOptions, *, synchronise: bool
    ) -> tuple[Tensor, Stats]:
        """Add the gradients of the cross-entropy times `scale` and of the auxiliary losses.

        Return the scaled cross-entropy, without gradient, and the reports.

        With `synchronise`, average the gradients added since the last synchronization over ranks.
        """
        alone = nullcontext() if self._ddp is None or synchronise else self._ddp.no_sync()
        with alone:
            total, ce, stats = self._forward(batch, scale, options)
            total.backward()
        return ce.detach(), stats

    def prime(self, batch: Batch, options: StepOptions) -> None:
        """Let DDP arrange its buckets. Call this before the first step, with any micro-batch.

        DDP arranges its buckets once: in the forward pass after the first synchronized backward.
        The arrangement decides the order in which the gradients of three or more ranks are added.
        If this happens before the first step, a resumed run and an unbroken run have the same
        arrangement. All ranks do this at once, although not all of them begin a step with a
        micro-batch.
        """
        if self._ddp is None or self._primed:
            return
        nothing = torch.zeros((), device=self._device)
        options = options._replace(parts={})
        self._forward(batch, nothing, options)[0].backward()
        with self._ddp.no_sync():
            self._forward(batch, nothing, options)
        self._model.zero_grad()
        self._primed = True

    def _forward(
        self, batch: Batch, scale: Tensor, options: StepOptions
    ) -> tuple[Tensor, Tensor, Stats]:
        batch = to_device(batch, self._device)
        bf16 = self._dtype == torch.bfloat16
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            result: tuple[Tensor, Tensor, Stats] = self._loss(
                batch, scale, self._aux_scale, options
            )
        return result


class Ranks:
    """The group of all ranks. Every rank calls the same methods in the same order."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._control: Any = None  # process group
        if world_size > 1:
            # Ranks agree to stop over gloo, because gloo never waits for the GPU.
            gloo = dist.get_backend() == "gloo"
            self._control = dist.group.WORLD if gloo else dist.new_group(backend="gloo")

    def sum(self, value: Tensor) -> Tensor:
        """Return the tensor summed over ranks, on its device and in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        asked = torch.tensor(int(flag))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._control)
        return bool(asked)

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def copy_from_rank_0(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with rank 0's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)
