"""The gradients of a rank in flat buckets, and their sum over all ranks.

A rank has one set of gradients. Each gradient is a part of a bucket, in all micro-batches and all
steps. A bucket is summed over ranks as a whole, while the backward pass computes the other buckets.

All ranks must send the same buckets in the same order. So which gradients are in a bucket, and the
order of the buckets, follow from the model alone. A bucket is sent after all buckets before it,
even on a rank whose backward pass leaves some parameters out. A resumed run has the buckets of the
unbroken run, and adds the gradients of three or more ranks in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pion.config.model_config import APART
from pion.train.optimizer.muon_rounds import groups_of

# As many bytes as a bucket of torch's DistributedDataParallel has by default. A larger gradient has
# a bucket for itself.
BUCKET_BYTES = 25 * 2**20

# Each gradient begins at a multiple of so many elements, because kernels read 16 bytes at once.
ALIGNED_TO = 4

# The parts of a decoder that the forward pass ends with. All others serve its first layer, or
# several layers: their gradients are complete at the end of the backward pass.
END_OF_FORWARD = ("blocks.", "norm.", "lm_head.", *(f"{name}." for name in APART))


def in_order_of_backward(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a decoder learns, about in the order of their gradients.

    The order decides only how early a bucket is complete.
    """
    learned = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    learned.reverse()
    learned.sort(key=lambda item: not item[0].startswith(END_OF_FORWARD))
    return [param for _, param in learned]


@dataclass
class _Bucket:
    """Gradients of some parameters: `gradients` are views of `flat`, in the order of `params`."""

    params: list[nn.Parameter]
    flat: Tensor
    gradients: list[Tensor]
    # The places of the parameters that the backward pass has not reached yet.
    missing: set[int] = field(default_factory=set)
    sent: bool = False


class Buckets:
    """The gradients of `params`, which have one dtype and are on one device."""

    def __init__(self, params: Sequence[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        self._buckets = [_bucket(group) for group in groups_of(params, _bytes, bucket_bytes)]
        self._sums: list[Any] = []  # the sums that are under way: torch.distributed's Work

    @property
    def nbytes(self) -> int:
        """The bytes of all buckets: what a step sums over ranks."""
        return sum(bucket.flat.nbytes for bucket in self._buckets)

    def clear(self) -> None:
        """Set all gradients to zero, and give them to their parameters."""
        torch._foreach_zero_([bucket.flat for bucket in self._buckets])
        for bucket in self._buckets:
            bucket.missing, bucket.sent = set(range(len(bucket.params))), False
            for param, gradient in zip(bucket.params, bucket.gradients, strict=True):
                param.grad = gradient

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Let the backward pass inside the `with` block send each bucket once it is complete.

        The backward pass is the last one before `finish`. It waits for no other rank.
        """
        # Hooks that stay would be seen by the compiler, and would keep this object alive.
        hooks = [
            param.register_post_accumulate_grad_hook(partial(self._added, bucket, place))
            for bucket in self._buckets
            for place, param in enumerate(bucket.params)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> None:
        """Send the buckets that are not complete yet, and wait until all are summed over ranks.

        A gradient that no backward pass has reached counts as zero, also if this rank had no
        backward pass. On a GPU, only the operations that follow wait: not the host.
        """
        for bucket in self._buckets:
            bucket.missing.clear()
        self._send()
        for work in self._sums:
            work.wait()
        self._sums.clear()

    def _added(self, bucket: _Bucket, place: int, param: Tensor) -> None:
        if bucket.sent:
            raise RuntimeError("a gradient has changed after its sum over ranks has begun")
        bucket.missing.discard(place)
        if not bucket.missing:
            self._send()

    def _send(self) -> None:
        """Begin to sum the complete buckets, up to the first one that is not complete."""
        for bucket in self._buckets:
            if bucket.missing:
                return
            if not bucket.sent:
                bucket.sent = True
                # The ranks would sum zeros instead of a gradient that is not in the bucket.
                for param, gradient in zip(bucket.params, bucket.gradients, strict=True):
                    if param.grad is not gradient:
                        raise RuntimeError(
                            f"the gradient of a parameter of shape {tuple(param.shape)} is not in "
                            "its bucket"
                        )
                self._sums.append(dist.all_reduce(bucket.flat, async_op=True))


def _bytes(param: Tensor) -> int:
    return _elements(param) * param.element_size()


def _elements(param: Tensor) -> int:
    """Return the elements of a bucket that a gradient takes."""
    return -(-param.numel() // ALIGNED_TO) * ALIGNED_TO


def _bucket(params: list[nn.Parameter]) -> _Bucket:
    sizes = [_elements(param) for param in params]
    flat = torch.zeros(sum(sizes), dtype=params[0].dtype, device=params[0].device)
    parts = flat.split(sizes)
    views = [part[: p.numel()].view(p.shape) for p, part in zip(params, parts, strict=True)]
    return _Bucket(params, flat, views)
