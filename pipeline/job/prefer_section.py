"""The job file: the stage that learns from preferences.

A changed default or a new field moves digests: see train_sections.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import PrivateAttr, model_validator

from pion.config.part_fields import FACTOR, SEQ_LEN
from pion.errors import BadInput
from pion.train.preference import (
    REFERENCE_CAN_BE_NONE,
    WITHOUT_REFERENCE,
    Loss,
    Preference,
)
from pipeline.job.data_section import PreferenceSource
from pipeline.job.section import BATCH, STEPS, identity, made, mistakes_of, refuse, scheduled
from pipeline.job.sft_and_lora_sections import Conversations, Lora


class Prefer(Conversations):
    rates_of_lora: ClassVar = {"lr": 2e-5, "min_lr": 2e-6, "weight_decay": 0.0}
    rows_depend_on: ClassVar = ("model.seq_len",)

    loss: Loss = identity(
        "dpo-norm",
        "what is learned from an answer that is better than another. dpo-norm compares means over "
        "tokens, dpo sums. orpo and simpo need no reference model. apo-zero also learns from "
        "single answers",
    )
    beta: float | None = identity(
        None,
        "how strongly the model is held to the reference, or λ of orpo; unset: 5 for dpo-norm, 1 "
        "for ipo, 2.5 for simpo, else 0.1",
        gt=0,
        most=FACTOR,
    )
    margin: float | None = identity(
        None,
        "by how much a chosen answer has to be better (simpo only); unset: half of beta",
        ge=0,
        most=FACTOR,
    )
    label_smoothing: float = identity(
        0.0,
        "expected share of pairs whose two answers are swapped (dpo, dpo-norm and simpo only)",
        ge=0,
        lt=0.5,
    )
    sft_weight: float = identity(
        0.0,
        "weight of the chosen answers' cross-entropy, which is added to the loss",
        ge=0,
        most=FACTOR,
    )
    desirable_weight: float = identity(
        1.0, "weight of desired answers (data with labels)", ge=0, most=FACTOR
    )
    undesirable_weight: float = identity(
        1.0, "weight of undesired answers (data with labels)", ge=0, most=FACTOR
    )
    reference: Literal["start", "none"] | None = identity(
        None,
        "the model that the trained model is compared with. start: the model that the stage starts "
        "from; none: no model (dpo, dpo-norm and ipo only); unset: start, if the loss needs one",
    )
    epochs: float | None = scheduled(
        None, "passes over the preferences; unset: 1, or as many as steps gives", gt=0, most=10_000
    )
    global_batch: int = identity(
        32, "rows in one optimizer step, for any number of GPUs", gt=0, most=BATCH
    )
    lr: float = scheduled(2e-6, "peak learning rate", gt=0, most=FACTOR)
    min_lr: float = scheduled(2e-7, "learning rate at the end of the schedule", ge=0, most=FACTOR)
    warmup_steps: int | None = scheduled(
        None, "steps of linear warm-up; unset: a tenth of the steps", ge=0, most=STEPS
    )
    weight_decay: float = scheduled(
        0.0, "decoupled weight decay of matrices and embeddings", ge=0, most=FACTOR
    )
    sources: list[PreferenceSource] = identity(
        ..., "where the preferences come from: pairs, or answers with labels", min_length=1
    )
    held_out: float = identity(0.02, "share of the prompts reserved for evaluation", gt=0, lt=0.5)
    seq_len: int | None = identity(
        None,
        "tokens in a packed row, which has both answers of a pair; unset: twice sft.seq_len, or "
        "twice data.seq_len without sft",
        ge=8,
        most=SEQ_LEN,
    )
    lora: Lora | None = identity(
        None,
        "train low-rank additions to the frozen model; then lr is 2e-5 and min_lr 2e-6 unless "
        "given. After sft.lora, its additions are trained further, and the settings must be the "
        "same",
    )

    _unpaired: bool = PrivateAttr(default=False)
    _most_sequences: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_whole(self) -> Prefer:
        """Refuse what does not fit together; fill in what the job leaves open."""
        weighted = self.desirable_weight != 1 or self.undesirable_weight != 1
        # Whether the data has labels is seen when it is read.
        self._unpaired = weighted and self.loss == "apo-zero"
        needed = self.loss not in WITHOUT_REFERENCE
        can_be_none = not needed or self.loss in REFERENCE_CAN_BE_NONE
        mistakes = {
            f"reference: the loss {self.loss} has none; remove `reference`": (
                self.reference is not None and not needed
            ),
            f"reference: the loss {self.loss} needs one; remove `reference`, or use "
            f"{', '.join(REFERENCE_CAN_BE_NONE)}": self.reference == "none" and not can_be_none,
        }
        refuse(self, mistakes_of(self._settings) + made(mistakes))
        self.beta = self._settings().strength
        if self.loss == "simpo":
            self.margin = self._settings().least_margin
        if needed and self.reference is None:
            self.reference = "start"
        if self.steps is None and self.epochs is None:
            self.epochs = 1.0
        return self

    def _settings(self) -> Preference:
        return Preference(
            self.loss,
            self.beta,
            self.margin,
            self.label_smoothing,
            self.sft_weight,
            self.desirable_weight,
            self.undesirable_weight,
            self._unpaired,
        )

    @property
    def learning(self) -> Preference:
        """How the stage learns. Whether from single answers is known after `know_kind`."""
        return self._settings()

    @property
    def needs_reference(self) -> bool:
        """Whether the model is compared with the one that the stage starts from."""
        return self.reference == "start"

    def row_length(self, text: int, conversations: int) -> int:
        """Return the tokens in a row, which has both answers of a pair."""
        return self.seq_len or 2 * conversations

    def know_data(self, kind: str, most_sequences: Callable[[], int], where: str) -> None:
        """Learn what the data are. Raises BadInput as `know_kind` does."""
        self.know_kind(kind, where)
        self._most_sequences = most_sequences()

    def most_sequences(self, seq_len: int) -> int:
        """Return the most answers in a row of so many tokens: a guess before the data is there."""
        guess = max(2, seq_len // _USUAL_SEQUENCE)
        return guess if self._most_sequences is None else self._most_sequences

    def know_kind(self, kind: str, where: str) -> None:
        """Learn whether the data has "pairs" or "labels"; `where` names it in errors.

        Raises BadInput if the loss can't learn from these.
        """
        before, self._unpaired = self._unpaired, kind == "labels"
        try:
            self._settings()
        except BadInput as error:
            self._unpaired = before
            raise BadInput(f"{where}: {_OTHER_KIND[kind]}. {error}. Nothing was trained") from None


# Few sets of preferences have shorter prompts with their answers.
_USUAL_SEQUENCE = 64
_OTHER_KIND = {
    "pairs": "these are pairs of a chosen and a rejected answer",
    "labels": "these are single answers with labels, and not pairs. To learn from them, set "
    "prefer.loss=apo-zero",
}
