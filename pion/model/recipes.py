"""What the recipes of a model are like: how sure, how different, and what they use of the banks."""

from __future__ import annotations

import torch
from torch import Tensor

from pion.model.bank import recipe_of

# Names of what a model with primitives reports: see `recipe_report`.
RECIPE_ENTROPY, PRIMITIVES_USED = "recipe_entropy", "primitives_used"


def diversity_loss(recipes: Tensor, bands: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the mean cosine of the recipes of two layers of a band, over all pairs (PILON).

    `recipes` (2, n_layers, n) has the logits of each layer's two recipes. The mean is 0 if no band
    has two layers.
    """
    units = torch.nn.functional.normalize(recipes.softmax(dim=-1), dim=-1)
    cosines = []
    for band in bands:
        of_band = units[:, list(band)]
        first, second = torch.triu_indices(len(band), len(band), 1, device=units.device)
        cosines.append((of_band[:, first] * of_band[:, second]).sum(dim=-1).flatten())
    every = torch.cat(cosines)
    return every.mean() if len(every) else recipes.new_zeros(())


@torch.no_grad()
def recipe_report(
    recipes: Tensor, bands: tuple[tuple[int, ...], ...], top_k: int
) -> dict[str, Tensor]:
    """Report on recipes (2, n_layers, n).

    "recipe_entropy" (n_layers,) is the mean entropy of a layer's two recipes in nats.
    "primitives_used" (2 · bands,) counts for each bank the primitives that some layer chooses: of
    each band, the bank that maps up and then the one that maps down.
    """
    entropy = torch.special.entr(recipes.softmax(dim=-1)).sum(dim=-1).mean(dim=0)
    used = []
    for band in bands:
        for matrix in recipes:
            chosen = torch.zeros(matrix.shape[-1], device=matrix.device)
            for layer in band:
                chosen[recipe_of(matrix[layer], top_k).chosen] = 1
            used.append(chosen.sum())
    return {RECIPE_ENTROPY: entropy, PRIMITIVES_USED: torch.stack(used)}
