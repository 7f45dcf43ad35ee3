"""What a text's settings change in its logits before a draw: biases, penalties, forbidden ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A number for each of some ids.
ById = tuple[Sequence[int], Sequence[float]]


@dataclass(frozen=True)
class Changes:
    """What changes in the logits of one text, in this order.

    Attributes:
        bias: ids, and what is added to their logits.
        repeated: ids whose logits are divided by `penalty` if positive, and else multiplied by it.
        lowered: ids, and what is taken off their logits.
        allowed: which ids may be drawn, (n,) bool on the host. None: all.
        vocab_size: ids from here on can't be drawn.
    """

    vocab_size: int
    bias: ById | None = None
    repeated: Sequence[int] = ()
    penalty: float = 1.0
    lowered: ById | None = None
    allowed: Tensor | None = None


def change_logits(logits: Tensor, changes: Sequence[Changes]) -> Tensor:
    """Return logits (B, vocab) with the changes of each row; ids that can't be drawn have −∞.

    The result is `logits` itself if nothing changes in it. `logits` stay as they are. Nothing waits
    for their device.
    """
    device, size = logits.device, max(each.vocab_size for each in changes)
    if size < logits.shape[1]:
        logits = logits[:, :size]
    width = logits.shape[1]
    flat: Tensor | None = None  # a copy, in which places are row · width + id

    def places(of_rows: Sequence[Sequence[int]]) -> Tensor:
        found = [row * width + token for row, ids in enumerate(of_rows) for token in ids]
        return torch.tensor(found, dtype=torch.int64).to(device, non_blocking=True)

    def numbers(of_rows: Sequence[Sequence[float]]) -> Tensor:
        found = [number for row in of_rows for number in row]
        return torch.tensor(found, dtype=torch.float32).to(device, non_blocking=True)

    def copied() -> Tensor:
        return logits.clone().flatten() if flat is None else flat

    biases = [each.bias or ((), ()) for each in changes]
    if any(ids for ids, _ in biases):
        flat = copied()
        flat.index_add_(0, places([ids for ids, _ in biases]), numbers([add for _, add in biases]))
    if any(each.repeated for each in changes):
        flat = copied()
        at = places([each.repeated for each in changes])
        penalty = numbers([[each.penalty] * len(each.repeated) for each in changes])
        values = flat[at]
        flat[at] = torch.where(values > 0, values / penalty, values * penalty)
    lowered = [each.lowered or ((), ()) for each in changes]
    if any(ids for ids, _ in lowered):
        flat = copied()
        at = places([ids for ids, _ in lowered])
        flat[at] = flat[at] - numbers([off for _, off in lowered])
    if all(each.allowed is None and each.vocab_size == size for each in changes):
        return logits if flat is None else flat.view(logits.shape)
    forbidden = torch.ones(logits.shape, dtype=torch.bool)
    for row, each in enumerate(changes):
        allowed = torch.tensor(True) if each.allowed is None else each.allowed[: each.vocab_size]
        forbidden[row, : each.vocab_size] = ~allowed
    changed = logits if flat is None else flat.view(logits.shape)
    return changed.masked_fill(forbidden.to(device, non_blocking=True), float("-inf"))
