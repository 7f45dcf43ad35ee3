"""Find rows of an embedding that look as if the model had never been trained on their tokens.

A base model has rows for tokens that its pretraining never contained: reserved tokens, often the
end of a turn, and rows that only fill the matrix up. LoRA does not train the embedding. So a base
model that is fine-tuned with LoRA may never write, or understand, such a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

# A row is untrained if its norm is below this share of the median norm: Weight decay makes a row
# without gradients shrink, and some models start with rows near 0.
SMALL_NORM = 0.25
# Rows that are known to be unused show how unused rows look. At least so many are needed.
FEWEST_UNUSED = 4
# A row is one of them if it is nearly as close to their mean as they are.
NEAR = 1.25


def untrained_rows(
    embedding: Tensor, tokens: Iterable[int], unused: Sequence[int] = ()
) -> list[int]:
    """Return those of `tokens` whose rows of `embedding` (vocab_size, d_model) look untrained.

    A row looks untrained by one of two rules, both in fp32:

    * its norm is below a quarter of the median norm of all rows;
    * at least four `unused` rows are given (reserved tokens, and rows beyond the tokenizer's), and
      the row is at most 1.25 times as far from their mean as the farthest of them. This rule only
      counts if at most one row in a hundred is so near: otherwise trained rows look the same.

    The rules find the usual cases, and prove nothing: use them for a warning.

    Raises:
        IndexError: a token has no row.
    """
    rows = embedding.detach().float()
    norms = rows.norm(dim=1)
    small = norms < SMALL_NORM * norms.median()
    like_unused = torch.zeros_like(small)
    if len(unused) >= FEWEST_UNUSED:
        known = rows[list(unused)]
        mean = known.mean(dim=0)
        farthest = (known - mean).norm(dim=1).max()
        near = (rows - mean).norm(dim=1) <= NEAR * farthest
        others = near.sum() - near[list(unused)].sum()
        if others <= max(1, len(rows) // 100):
            like_unused = near
    found = small | like_unused
    return [token for token in tokens if bool(found[token])]


def never_stops(embedding: Tensor, specials: Mapping[int, str]) -> str | None:
    """Return a warning if LoRA can't teach some of the `specials`, id → text; None if it can.

    `embedding` is the base's, (vocab_size, d_model). Raises IndexError as `untrained_rows` does.
    """
    found = untrained_rows(embedding, specials)
    if not found:
        return None
    return (
        f"the model seems never to have seen {', '.join(specials[token] for token in found)}, and "
        "LoRA does not train the embedding, so the model may never stop. Start from the Instruct "
        "model, or train all weights (without sft.lora)"
    )
