"""Find rows of an embedding that look as if the model had never been trained on their tokens.

A base model has rows for tokens that its pretraining never contained: reserved tokens, often the
end of a turn, and rows that only fill the matrix up. LoRA does not train the embedding. So a base
model that is fine-tuned with LoRA may never write, or understand, such a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

# A row is untrained if its norm is below this share of the median norm: Weight decay makes a row
# without gradients shrink, and some models start with rows near 0.
SMALL_NORM = 0.25


def untrained_rows(embedding: Tensor, tokens: Iterable[int]) -> list[int]:
    """Return those of `tokens` whose rows of `embedding` (vocab_size, d_model) look untrained.

    A row looks untrained if its norm, in fp32, is below a quarter of the median norm of all rows.
    The rule finds the usual cases, and proves nothing: use it for a warning.

    Raises:
        IndexError: a token has no row.
    """
    norms = embedding.detach().float().norm(dim=1)
    small = norms < SMALL_NORM * norms.median()
    return [token for token in tokens if bool(small[token])]


def never_stops(embedding: Tensor, specials: Mapping[int, str]) -> str | None:
    """Return a warning if LoRA can't teach some of the `specials`, id → text; None if it can.

    `embedding` is the base's, (vocab_size, d_model). Raises IndexError as `untrained_rows` does.
    """
    untrained = untrained_rows(embedding, specials)
    if not untrained:
        return None
    return (
        f"the model seems never to have seen {', '.join(specials[token] for token in untrained)}, "
        "and LoRA does not train the embedding, so the model may never stop. Start from the "
        "Instruct model, or train all weights (without sft.lora)"
    )
