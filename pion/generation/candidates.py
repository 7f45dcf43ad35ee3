"""Find the likeliest ids of several texts on the device of the logits, and bring them to the host.

Everything comes in one copy, because the host waits for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

# How many of the likeliest ids are looked at first. Draws without a cut depend on this number
# (`sample`), so another one changes the texts of a seed.
CANDIDATES = 256
# So many are enough if all texts are drawn with a smaller `top_k`.
FEW = 64
# The likeliest ids are looked for in blocks of so many ids.
BLOCK = 16


@dataclass(frozen=True)
class Candidates:
    """What the host knows of the logits of B texts, as arrays.

    Attributes:
        finite: whether the model's logits are all finite numbers, (B,).
        best: the likeliest id of each text, of equals the lowest, (B, 1); none if not asked for.
        likeliest: the highest logits, (B, count) fp32, the highest first; none if not asked for.
        ids: the ids that have them, (B, count).
        totals: sums over all ids of e^((logit − highest) / temperature), (B, 1); none if not asked
            for.
        complete: whether all ids are among the likeliest.
    """

    finite: Array
    best: Array
    likeliest: Array
    ids: Array
    totals: Array
    complete: bool

    def rows(self, rows: Sequence[int]) -> Candidates:
        """Return those of some texts."""
        chosen = list(rows)
        return Candidates(
            self.finite[chosen],
            self.best[chosen],
            self.likeliest[chosen],
            self.ids[chosen],
            self.totals[chosen],
            self.complete,
        )


def find_candidates(
    logits: Tensor,
    changed: Tensor,
    *,
    count: int,
    temperatures: Sequence[float],
    greedy: Sequence[bool],
    needs_totals: bool,
) -> Candidates:
    """Return what a draw needs of the logits (B, vocab) of a model, and of the same as `changed` by
    a text's settings: the best id if any text is `greedy`, and the likeliest if any is not.
    Temperatures are above 0.
    """
    best = likeliest = ids = totals = changed[:, :0]
    if any(greedy):
        best = _likeliest_id(changed)
        highest = changed.gather(1, best)
    if not all(greedy):
        likeliest, ids = find_likeliest(changed, min(count, changed.shape[1]))
        highest = likeliest[:, :1]
    if needs_totals:
        weights = changed - likeliest[:, :1]
        if any(temperature != 1 for temperature in temperatures):
            # `torch.tensor(…, device=…)` would wait for the GPU.
            weights.div_(torch.tensor(temperatures)[:, None].to(logits.device, non_blocking=True))
        totals = weights.exp_().sum(dim=1, keepdim=True)
    # NaN counts as the least and as the greatest of all.
    if changed is not logits:
        highest = logits.amax(dim=1, keepdim=True)
    lowest = logits.amin(dim=1, keepdim=True)
    least, most, *parts = _bring_to_host((lowest, highest, best, likeliest, ids, totals))
    finite = np.isfinite(least[:, 0]) & np.isfinite(most[:, 0])
    return Candidates(finite, parts[0], parts[1], parts[2], parts[3], count >= changed.shape[1])


def _bring_to_host(parts: Sequence[Tensor]) -> list[Array]:
    """Return tensors (B, any) as arrays; those of a GPU in one copy, because the host waits."""
    if parts[0].device.type == "cpu":
        return [part.numpy() for part in parts]
    # Whole numbers of fp32 are exact up to 2^24, and no vocabulary is so large.
    together = torch.cat([part.float() for part in parts], dim=1).cpu().numpy()
    return np.split(together, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)


def find_likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest of logits (B, vocab) and their ids, the highest first.

    They are in the `count` blocks of ids with the highest maxima. So the logits are read once. The
    ids of a block are equally far apart: maxima of such blocks are fast on a CPU.
    """
    find = find_by_numpy if logits.device.type == "cpu" else find_by_torch
    return find(logits, count)


def find_by_torch(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the same as `find_likeliest`, on any device."""
    blocks = logits.shape[1] // BLOCK
    if blocks <= 2 * count:
        values, ids = logits.topk(count, dim=1)
        return values, ids
    chosen = _maxima(logits, blocks).topk(count, dim=1, sorted=False).indices
    # The ids of a block, and those that are in no block.
    apart = torch.arange(0, blocks * BLOCK, blocks, device=logits.device)
    ids = (chosen[:, None] + apart[:, None]).flatten(1)
    if blocks * BLOCK < logits.shape[1]:
        rest = torch.arange(blocks * BLOCK, logits.shape[1], device=logits.device)
        ids = torch.cat((ids, rest.expand(len(logits), -1)), dim=1)
    values, places = logits.gather(1, ids).topk(count, dim=1)
    return values, ids.gather(1, places)


def _maxima(logits: Tensor, blocks: int) -> Tensor:
    """Return the highest logits of the blocks, (B, blocks)."""
    return logits[:, : blocks * BLOCK].view(-1, BLOCK, blocks).amax(dim=1)


# On a CPU, torch's `argmax` and `topk` look at one number after the other, and numpy's at many. Its
# operations on a few numbers take less time than torch's.


def _likeliest_id(logits: Tensor) -> Tensor:
    """Return the id with the highest of logits (B, vocab), of equals the lowest: (B, 1)."""
    if logits.device.type != "cpu":
        return logits.max(dim=1, keepdim=True).indices
    return torch.from_numpy(logits.numpy().argmax(axis=1, keepdims=True))


def find_by_numpy(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the same as `find_likeliest`, on a CPU."""
    blocks = logits.shape[1] // BLOCK
    rows = np.arange(len(logits))[:, None]
    if blocks <= 2 * count:
        indices = _places_of_highest(logits.numpy(), count)
    else:
        chosen = _places_of_highest(_maxima(logits, blocks).numpy(), count)
        ids = np.empty((len(logits), BLOCK * count + logits.shape[1] % BLOCK), dtype=np.int64)
        in_blocks = ids[:, : BLOCK * count].reshape(-1, BLOCK, count)
        np.add(chosen[:, None], np.arange(0, blocks * BLOCK, blocks)[:, None], out=in_blocks)
        ids[:, BLOCK * count :] = np.arange(blocks * BLOCK, logits.shape[1])
        among = logits.gather(1, torch.from_numpy(ids)).numpy()
        indices = ids[rows, _places_of_highest(among, count)]
    values = logits.numpy()[rows, indices]
    order = values.argsort(axis=1)[:, ::-1]
    return torch.from_numpy(values[rows, order]), torch.from_numpy(indices[rows, order])


def _places_of_highest(values: Array, count: int) -> Array:
    """Return the places of the `count` highest of values (B, n), in any order."""
    apart = values.shape[1] - count
    return values.argpartition(apart, axis=1)[:, apart:]
