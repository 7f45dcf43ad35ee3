"""What of a model may change from one training step to the next."""

from __future__ import annotations

from typing import NamedTuple


class Varying(NamedTuple):
    """Sizes that a training step uses; None: those of the model.

    `window` is the long window in tokens, `top_k` the primitives in a recipe, and `rank` the ranks
    of each primitive in use.
    """

    window: int | None = None
    top_k: int | None = None
    rank: int | None = None


# What evaluation, generation and export use.
OF_THE_MODEL = Varying()
