"""The settings of a draft block, which guesses tokens (pion/model/draft_block.py), and a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pion.config.part_fields import (
    VOCABULARY,
    Core,
    Measure,
    Part,
    PartResult,
    check_fields,
    is_whole,
    setting,
)
from pion.errors import BadInput
from pion.later_fields import shown

# How the texts of an evaluation are drawn, by name: the likeliest tokens, and the default of
# `pion generate`.
TEMPERATURES = {"greedy": 0.0, "drawn": 0.8}
# Of a larger vocabulary, only so many ids are guessed: those that the training data has most often
# (Zhao et al. 2025, "FR-Spec"). A head over all ids would take most of the time of a guess.
USUAL_IDS = 4096
# The most tokens that are drafted for a step. More are hardly ever right. A cache can take back as
# many tokens of a row.
MOST_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class Draft(Part):
    """A small block that guesses tokens, so that several are read in one pass."""

    about: ClassVar = (
        "a small block that guesses tokens, so that the model writes the same text faster; it "
        "learns from the model and changes nothing in it"
    )
    roles: ClassVar = ("draft",)
    apart: ClassVar = True
    result: ClassVar = PartResult(
        name="drafts",
        measures={
            "texts": Measure("texts", "count", error=False),
            # The mean over texts. Its error is null for a single text.
            "tokens_per_pass": Measure("tokens a pass", 2),
            # The share of guessed tokens that were right; null if none was guessed.
            "right": Measure("right", "share", error=False),
        },
        entries={"greedy": "the likeliest", "drawn": "drawn at a temperature of 0.8"},
        about="A small block next to the model guesses the next tokens of a text, and the model "
        "checks all guesses in one pass. This makes texts faster and never changes them. Below is "
        "how many tokens a pass adds to a text that continues held-out text (1 without guesses; "
        "more is better), and the share of guessed tokens that were right:",
        columns=("model", "tokens"),
        shown=("tokens_per_pass", "right"),
        in_brief="{} tokens a pass (1 without drafts)",
    )

    steps: int = setting("tokens that the block learns to guess one after the other", 3, most=16)
    ids: int | None = setting(
        "how many ids the block may guess. They are the most frequent ids of the training data; "
        f"unset: the smaller of {USUAL_IDS} and the vocabulary",
        None,
        most=VOCABULARY,
    )

    def __post_init__(self) -> None:
        check_fields(self, "draft.")
        if self.steps > MOST_STEPS:
            raise BadInput(f"draft.steps is {self.steps}; it must be at most {MOST_STEPS}")

    def check(self, model: Core) -> None:
        """Raise BadInput for more ids than the model has, or none."""
        if self.ids is not None and not (is_whole(self.ids) and 1 <= self.ids <= model.vocab_size):
            raise BadInput(
                f"draft.ids is {shown(self.ids)}; it must be from 1 to {model.vocab_size:,}, the "
                "ids of the model"
            )

    def check_frozen(self, base: Draft | None, model: Core) -> None:
        """Raise BadInput unless LoRA's base has learned this block: LoRA trains no block."""
        vocab_size = model.vocab_size
        if base is None or base.ids_of(vocab_size) != self.ids_of(vocab_size):
            which = "no draft block" if base is None else "a draft block of other ids"
            raise BadInput(
                "model.draft: LoRA trains only its additions, and the model it starts from has "
                f"{which}, so the new block would learn nothing. Nothing was lost. Remove "
                "model.draft. If you want drafts, train a block for the finished model "
                "(`pion help drafts`)"
            )

    def card(self) -> tuple[str, str]:
        """Return how many tokens the block guesses, and how it is used."""
        return "draft block", (
            f"guesses {self.steps} token{'s' * (self.steps > 1)}, in the folder `draft`; used with "
            "`pion generate --drafts auto`"
        )

    def ids_of(self, vocab_size: int) -> int:
        """Return how many ids are guessed of so large a vocabulary."""
        return min(USUAL_IDS, vocab_size) if self.ids is None else self.ids
