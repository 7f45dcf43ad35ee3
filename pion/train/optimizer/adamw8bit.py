"""AdamW whose moments have 8 bits for each element, and a scale for each block of elements.

As in Dettmers et al. 2022, "8-bit optimizers via block-wise quantization", a block has at most 256
elements, and what is small keeps moments in fp32. The paper looks up codes in a table. Here, a code
is linear in a root of the quotient of a moment and the largest of its block: in the fourth root of
the first moment, with its sign, and in the eighth root of the second. Gradients that differ by
orders of magnitude within a block then have smaller errors, and a CPU needs a tenth of the time.

A block is a part of a row. So the ranks of a sharded model never cut one, and their number changes
no bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pion.model.saved_weights import Layout
from pion.train.optimizer.adamw import MOMENTS, AdamW
from pion.train.optimizer.rule import Owned

# A parameter with fewer elements keeps moments in fp32, as does one whose rows have no such blocks.
FEWEST = 4096
# The sizes of blocks, in the order of choice. Kernels compute groups of 16 elements.
BLOCKS = range(256, 31, -16)
# So many elements, at most, have moments in fp32 at once.
AT_ONCE = 2**22


class AdamW8bit(AdamW):
    """AdamW, where the moments of large parameters are in fp32 only during the step."""

    @staticmethod
    def state(shape: torch.Size) -> Layout:
        """Return the layout of the codes and scales of both moments, or of moments in fp32."""
        block = _block(shape)
        if not block:
            return AdamW.state(shape)
        scales = torch.Size((*shape[:-1], shape[-1] // block))
        codes: Layout = dict.fromkeys(MOMENTS, (shape, torch.uint8))
        return {**codes, **{f"{key}_scale": (scales, torch.float32) for key in MOMENTS}}

    @staticmethod
    def step_bytes(shapes: Iterable[torch.Size]) -> int:
        """Return the bytes of two moments in fp32, and of what is computed of one."""
        return 12 * max(
            (min(shape.numel(), AT_ONCE) for shape in shapes if _block(shape)), default=0
        )

    def step(self, lr: float, momentum: float) -> None:
        """Update all weights, and count the update."""
        self._step([owned for owned in self.owned if len(owned.state) == len(MOMENTS)], lr)
        for owned in self.owned:
            if len(owned.state) > len(MOMENTS):
                self._step_coded(owned, lr)

    def _step_coded(self, owned: Owned, lr: float) -> None:
        steps, blocks = owned.steps.clone(), len(owned.state[f"{MOMENTS[0]}_scale"])
        size = owned.param.numel() // blocks
        every = owned.weights, owned.gradient, *owned.state.values()
        parts = [tensor.view(blocks, -1).split(AT_ONCE // size) for tensor in every]
        for part in zip(*parts, strict=True):
            owned.steps.copy_(steps)
            self._step_part(part, owned.steps, lr)

    def _step_part(self, part: tuple[Tensor, ...], steps: Tensor, lr: float) -> None:
        """Update weights (blocks, size) whose moments are codes with scales (blocks, 1)."""
        weights, gradient, first, second, first_scale, second_scale = part
        exp_avg = _decode(first, first_scale, signed=True)
        exp_avg_sq = _decode(second, second_scale, signed=False)
        self._update([weights], [gradient], [exp_avg], [exp_avg_sq], [steps], lr)
        _encode(exp_avg, first, first_scale, signed=True)
        _encode(exp_avg_sq, second, second_scale, signed=False)


def _block(shape: torch.Size) -> int:
    """Return the size of a parameter's blocks; 0: its moments are in fp32."""
    if len(shape) < 2 or shape.numel() < FEWEST:
        return 0
    return next((size for size in BLOCKS if shape[-1] % size == 0), 0)


def _decode(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """Return the moments (blocks, size) of codes, in fp32."""
    roots = codes.float()
    if signed:
        roots.sub_(128).div_(127)
        return roots.square().square_().copysign_(roots).mul_(scale)
    return roots.div_(255).square_().square_().square_().mul_(scale)


def _encode(values: Tensor, codes: Tensor, scale: Tensor, *, signed: bool) -> None:
    """Overwrite the codes and the scale (blocks, 1) by those of moments, which are overwritten."""
    torch.amax(values.abs(), dim=1, keepdim=True, out=scale)
    values.div_(scale.clamp(min=torch.finfo(torch.float32).tiny))
    if signed:
        values = values.abs().sqrt_().sqrt_().mul_(127).copysign_(values).round_().add_(128)
    else:
        # No element has the code 0: its update would be divided by AdamW's epsilon alone.
        values.sqrt_().sqrt_().sqrt_().mul_(255).round_().clamp_(min=1)
    codes.copy_(values)
