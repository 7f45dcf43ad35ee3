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
        best: the likeliest id of each text, of equals the lowest, (B,); noise if not asked for.
        likeliest: the highest logits, (B, count) fp32, the highest first; none if not asked for.
        ids: the ids that have them, (B, count), as fp32.
        totals: sums over all ids of e^((logit − highest) / temperature), (B,); noise if not asked
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
    needs_best, needs_likeliest = any(greedy), not all(greedy)
    best = likeliest = ids = totals = changed[:, :0]
    if needs_best:
        places = _likeliest_id(changed)
        highest, best = changed.gather(1, places), places.float()
    if needs_likeliest:
        likeliest, places = find_likeliest(changed, min(count, changed.shape[1]))
        # Whole numbers of fp32 are exact up to 2^24, and no vocabulary is so large.
        highest, ids = likeliest[:, :1], places.float()
    if needs_totals:
        weights = changed - likeliest[:, :1]
        if any(temperature != 1 for temperature in temperatures):
            # `torch.tensor(…, device=…)` would wait for the GPU.
            divisors = torch.tensor(temperatures)[:, None].to(logits.device, non_blocking=True)
            weights.div_(divisors)
        totals = weights.exp_().sum(dim=1, keepdim=True)
    # NaN counts as the least and as the greatest of all.
    if changed is not logits:
        highest = logits.amax(dim=1, keepdim=True)
    parts = (logits.amin(dim=1, keepdim=True), highest, best, totals, likeliest, ids)
    together = torch.cat(parts, dim=1).cpu().numpy()
    end = 2 + needs_best + needs_totals + likeliest.shape[1]
    return Candidates(
        finite=np.isfinite(together[:, 0]) & np.isfinite(together[:, 1]),
        best=together[:, 2],  # if it was asked for
        likeliest=together[:, 2 + needs_best + needs_totals : end],
        ids=together[:, end:],
        totals=together[:, 1 + needs_best + needs_totals],  # if they were asked for
        complete=count >= changed.shape[1],
    )


def find_likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest of logits (B, vocab) and their ids, the highest first.

    They are in the `count` blocks of ids with the highest maxima. So the logits are read once. The
    ids of a block are equally far apart: maxima of such blocks are fast on a CPU.
    """
    blocks = logits.shape[1] // BLOCK
    if blocks <= 2 * count:
        return _highest(logits, count, in_order=True)
    maxima = logits[:, : blocks * BLOCK].view(-1, BLOCK, blocks).amax(dim=1)
    chosen = _highest(maxima, count, in_order=False)[1]
    # The ids of a block, and those that are in no block.
    apart = torch.arange(0, blocks * BLOCK, blocks, device=logits.device)
    ids = (chosen[:, None] + apart[:, None]).flatten(1)
    if blocks * BLOCK < logits.shape[1]:
        rest = torch.arange(blocks * BLOCK, logits.shape[1], device=logits.device)
        ids = torch.cat((ids, rest.expand(len(logits), -1)), dim=1)
    values, places = _highest(logits.gather(1, ids), count, in_order=True)
    return values, ids.gather(1, places)


# On a CPU, torch's `argmax` and `topk` look at one number after the other, and numpy's at many.


def _likeliest_id(logits: Tensor) -> Tensor:
    """Return the id with the highest of logits (B, vocab), of equals the lowest: (B, 1)."""
    if logits.device.type != "cpu":
        return logits.max(dim=1, keepdim=True).indices
    return torch.from_numpy(logits.numpy().argmax(axis=1, keepdims=True))


def _highest(values: Tensor, count: int, *, in_order: bool) -> tuple[Tensor, Tensor]:
    """Return the `count` highest of values (B, n), and their places."""
    if values.device.type != "cpu":
        highest, places = values.topk(count, dim=1, sorted=in_order)
        return highest, places
    array = values.numpy()
    found = array.argpartition(array.shape[1] - count, axis=1)[:, array.shape[1] - count :]
    if in_order:
        order = np.take_along_axis(array, found, axis=1).argsort(axis=1)[:, ::-1]
        found = np.take_along_axis(found, order, axis=1)
    places = torch.from_numpy(found)
    return values.gather(1, places), places
