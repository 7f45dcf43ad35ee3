"""What the recipes of a model are like: how sure, how different, and what they use of the banks."""

from __future__ import annotations

import torch
from torch import Tensor

from pion.model.pilon.banks import recipe_of

# Names of what a model with primitives reports: see `recipe_report`.
RECIPE_ENTROPY, PRIMITIVES_USED = "recipe_entropy", "primitives_used"


def diversity_loss(recipes: Tensor, bands: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the mean cosine of two recipes of a band, over all pairs (PILON).

    `recipes` (2, rows, n) has the logits of the recipes up and down, and `bands` the rows of each
    band: a row is a layer, or an expert of a layer. The mean is 0 if no band has two rows.
    """
    units = torch.nn.functional.normalize(recipes.softmax(dim=-1), dim=-1)
    total, pairs = recipes.new_zeros(()), 0
    for band in bands:
        # An index that is a list would wait for the GPU.
        of_band = torch.stack([units[:, row] for row in band])
        # (Σu)² has each pair twice, and the squares.
        total = total + (of_band.sum(dim=0).square().sum() - of_band.square().sum()) / 2
        pairs += len(units) * len(band) * (len(band) - 1) // 2
    return total / max(pairs, 1)


@torch.no_grad()
def recipe_report(
    recipes: Tensor, bands: tuple[tuple[int, ...], ...], top_k: int
) -> dict[str, Tensor]:
    """Report on recipes (2, rows, n) of the rows of each band; see `diversity_loss`.

    "recipe_entropy" (rows,) is the mean entropy of a row's two recipes in nats. "primitives_used"
    (2 · bands,) counts for each bank the primitives that some row chooses: of each band, the bank
    that maps up and then the one that maps down.
    """
    entropy = torch.special.entr(recipes.softmax(dim=-1)).sum(dim=-1).mean(dim=0)
    used = []
    for band in bands:
        for matrix in recipes:
            chosen = torch.zeros(matrix.shape[-1], device=matrix.device)
            for row in band:
                chosen[recipe_of(matrix[row], top_k).chosen] = 1
            used.append(chosen.sum())
    return {RECIPE_ENTROPY: entropy, PRIMITIVES_USED: torch.stack(used)}
