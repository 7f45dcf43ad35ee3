"""The settings of a draft block, which guesses tokens (pion/model/draft_block.py)."""

from __future__ import annotations

from dataclasses import dataclass

from pion.config.part_fields import VOCABULARY, Core, check_fields, is_whole, setting
from pion.errors import BadInput
from pion.later_fields import shown

# Of a larger vocabulary, only so many ids are guessed: those that the training data has most often
# (Zhao et al. 2025, "FR-Spec"). A head over all ids would take most of the time of a guess.
USUAL_IDS = 4096
MOST_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A small block that guesses tokens, so that several are read in one pass."""

    steps: int = setting("tokens that the block learns to guess one after the other", 3, most=16)
    ids: int | None = setting(
        "how many ids the block may guess, the most frequent of the training data; unset: the "
        f"smaller of {USUAL_IDS} and the vocabulary",
        None,
        most=VOCABULARY,
    )

    def __post_init__(self) -> None:
        check_fields(self, "draft.")
        if self.steps > MOST_STEPS:
            raise BadInput(f"draft.steps is {self.steps}; it must be at most {MOST_STEPS}")

    def check(self, model: Core) -> None:
        """Raise BadInput for more ids than the model has, or none."""
        if self.ids is None:
            return
        if not is_whole(self.ids) or not 1 <= self.ids <= model.vocab_size:
            raise BadInput(
                f"draft.ids is {shown(self.ids)}; it must be from 1 to {model.vocab_size:,}, the "
                "ids of the model"
            )

    def ids_of(self, vocab_size: int) -> int:
        """Return how many ids are guessed of so large a vocabulary."""
        return min(USUAL_IDS, vocab_size) if self.ids is None else self.ids


def require_learned(draft: Draft | None, learned: Draft | None, vocab_size: int) -> None:
    """Raise BadInput for a draft block that LoRA would have to train: LoRA trains no block.

    A model with the block `learned` is the base of a job whose model has the block `draft`.
    """
    if draft is None:
        return
    if learned is None or learned.ids_of(vocab_size) != draft.ids_of(vocab_size):
        which = "no draft block" if learned is None else "a draft block of other ids"
        raise BadInput(
            f"model.draft: LoRA trains only its additions, and the model it starts from has {which}"
            ", so the new block would learn nothing. Nothing was lost. Remove model.draft. If you "
            'want drafts, train a block for the finished model (docs/models.md, "Drafts")'
        )


def draft_d_ff(d_model: int) -> int:
    """Return the width of the block's feed-forward layer: 8/3 of the model's, in steps of 64."""
    return -(-8 * d_model // (3 * 64)) * 64
