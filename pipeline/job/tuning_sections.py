"""The job file: the stages that learn from conversations: fine-tuning, and preferences."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PrivateAttr, field_validator, model_validator

from pion.config.lora import ALL_LINEAR
from pion.config.lora import Lora as LoraSettings
from pion.config.part_fields import FACTOR, SEQ_LEN, WIDTH
from pion.data.chat.template_source import with_settings
from pion.errors import BadInput
from pion.later_fields import shown
from pion.train.preference import (
    REFERENCE_CAN_BE_NONE,
    WITHOUT_REFERENCE,
    Loss,
    Preference,
    check_preference,
)
from pipeline.job.section import (
    BATCH,
    STEPS,
    Section,
    identity,
    made,
    mistakes_of,
    refuse,
    scheduled,
)
from pipeline.job.sources import ConversationSource, PreferenceSource
from pipeline.job.train_sections import WARMUP, Train


def how_to_use_lora(stage: str) -> str:
    """Return what to write in a job to use LoRA in a stage."""
    return (
        f"write `{stage}: {{lora: {{rank: 16}}}}` next to the other fields of {stage}, or add "
        f"{stage}.lora.rank=16 to the command"
    )


class Lora(Section):
    """Fine-tuning of low-rank additions to a frozen base."""

    rank: int = identity(16, "rank of the additions", gt=0, most=WIDTH)
    alpha: float = identity(32.0, "the additions are scaled by alpha / rank", gt=0, most=FACTOR)
    targets: Literal["all-linear"] | list[str] = identity(
        "all-linear",
        "all-linear: every projection of attention and of feed-forward layers, without the head; "
        "or a list of projections, such as [q_proj, v_proj]",
    )
    base_dtype: Literal["bfloat16"] | None = identity(
        None,
        "bfloat16: round the frozen base, which then takes half the memory; unset: its own values, "
        "stored in bfloat16 where that changes none",
    )
    dropout: float = identity(
        0.0,
        "dropout before the additions; only 0, because a resumed run could not draw the same for "
        "any number of workers",
        before=0.0,
        most=1,
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _names(cls, targets: Any) -> Any:
        if targets == ALL_LINEAR:
            return targets
        if isinstance(targets, list) and targets and all(isinstance(n, str) for n in targets):
            return targets
        raise ValueError(f"{shown(targets)} should be all-linear or a list of projections")

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, dropout: float) -> float:
        if dropout != 0:
            raise ValueError("LoRA trains without dropout here; remove `dropout`")
        return dropout

    @model_validator(mode="after")
    def _fits(self) -> Lora:
        return refuse(self, mistakes_of(self.settings))

    def settings(self) -> LoraSettings:
        """Return the library's settings. Raises BadInput for values that make no sense."""
        targets = self.targets if self.targets == ALL_LINEAR else tuple(self.targets)
        return LoraSettings(self.rank, self.alpha, targets, self.base_dtype)


class Conversations(Train):
    """The fields of the stages that learn from conversations."""

    # What the stage uses with LoRA where the job says nothing. Few weights are trained, from 0, so
    # the rates are ten times those of full fine-tuning.
    rates_of_lora: ClassVar[dict[str, float]]

    steps: int | None = scheduled(None, "optimizer steps; unset: epochs decides", gt=0, most=STEPS)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "cosine", "after the warm-up: wsd (stable, then decay), cosine, or constant"
    )
    epochs: float | None = scheduled(
        None, "passes over the data, in place of steps", before=None, gt=0, most=10_000
    )
    sources: list[ConversationSource] | list[PreferenceSource] = identity(
        ..., "where the data comes from"
    )
    held_out: float = identity(..., "share of the data reserved for evaluation", gt=0, lt=0.5)
    seq_len: int | None = identity(
        None, "tokens in a packed row; unset: data.seq_len", ge=8, most=SEQ_LEN
    )
    lora: Lora | None = identity(
        None,
        "train low-rank additions to the frozen model; then lr is 2e-4, min_lr 2e-5 and "
        "weight_decay 0 unless given",
        before=None,
    )

    template: Literal["auto", "pion"] = identity(
        "auto",
        "chat template. auto: that of model.from, if it has one, else Pion's own; pion: Pion's own",
        before="auto",
    )
    system: str | None = identity(
        None,
        "system message of conversations without one, in place of what the model's chat template "
        "writes; unset: whatever it writes",
        before=None,
    )
    template_options: dict[str, bool | int | float | str] = identity(
        {},
        "variables of the model's chat template, such as {enable_thinking: false}",
        before={},
    )

    @field_validator("template_options")
    @classmethod
    def _options_fit(cls, options: dict[str, Any]) -> dict[str, Any]:
        return refuse(options, mistakes_of(with_settings, "", None, options, ()))

    @model_validator(mode="before")
    @classmethod
    def _rates_of_lora(cls, section: Any) -> Any:
        has_lora = isinstance(section, dict) and section.get("lora") is not None
        return cls.rates_of_lora | section if has_lora else section

    @model_validator(mode="after")
    def _lora_fits(self) -> Conversations:
        if self.lora is None:
            return self
        frozen = {
            f"{name}: LoRA trains only its additions; remove `{name}`": getattr(self, name)
            for name in ("embedding_lr", "head_lr", "vector_lr", "phases", "primitive_weight_decay")
        }
        frozen["optimizer: LoRA trains with adamw; remove `optimizer`"] = self.optimizer == "muon"
        return refuse(self, made(frozen))

    @property
    def passes(self) -> float:
        """The passes over the data, where the job gives them in place of steps."""
        assert self.epochs is not None
        return self.epochs

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Conversations:
        if self.steps is not None and self.epochs is not None:
            return refuse(self, ["epochs: steps is given too; remove one of the two"])
        if self.epochs is not None and self.phases:
            return refuse(self, ["epochs: phases need steps; give steps in place of epochs"])
        return self


class Sft(Conversations):
    rates_of_lora: ClassVar = {"lr": 2e-4, "min_lr": 2e-5, "weight_decay": 0.0}

    epochs: float | None = scheduled(
        None,
        "passes over the conversations, in place of steps; with model.from and without steps: 3",
        before=None,
        gt=0,
        most=10_000,
    )
    lr: float = scheduled(2e-5, "peak learning rate of AdamW", gt=0, most=FACTOR)
    min_lr: float = scheduled(2e-6, "learning rate at the end of the schedule", ge=0, most=FACTOR)
    warmup_steps: int = scheduled(100, WARMUP, ge=0, most=STEPS)
    weight_decay: float = scheduled(
        0.01, "decoupled weight decay of matrices and embeddings", ge=0, most=FACTOR
    )
    sources: list[ConversationSource] = identity(..., "where the conversations come from")
    held_out: float = identity(
        0.01, "share of the conversations reserved for evaluation", gt=0, lt=0.5
    )


class Prefer(Conversations):
    rates_of_lora: ClassVar = {"lr": 2e-5, "min_lr": 2e-6, "weight_decay": 0.0}

    loss: Loss = identity(
        "dpo-norm",
        "what is learned from an answer that is better than another. dpo-norm compares means over "
        "tokens, dpo sums. orpo and simpo need no reference model. kto: not yet, use apo-zero",
    )
    beta: float | None = identity(
        None,
        "how strongly the model is held to the reference, or λ of orpo; unset: 0.1, of dpo-norm 5, "
        "of ipo 1, of simpo 2.5",
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
        "share of the pairs that are expected to be swapped (dpo, dpo-norm and simpo only)",
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
        1.0, "weight of desired answers, in data with labels", ge=0, most=FACTOR
    )
    undesirable_weight: float = identity(
        1.0, "weight of undesired answers, in data with labels", ge=0, most=FACTOR
    )
    reference: Literal["start", "none"] | None = identity(
        None,
        "the model that this one is compared with. start: the one that the stage starts from; "
        "none: no model (dpo, dpo-norm and ipo only); unset: start, if the loss needs one",
    )
    epochs: float | None = scheduled(
        None, "passes over the preferences; unset: 1, or steps decides", gt=0, most=10_000
    )
    global_batch: int = identity(
        32, "rows in one optimizer step, for any number of GPUs", gt=0, most=BATCH
    )
    lr: float = scheduled(2e-6, "peak learning rate of AdamW", gt=0, most=FACTOR)
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
        "tokens in a packed row, which takes both answers of a pair; unset: twice those of sft, or "
        "of data without sft",
        ge=8,
        most=SEQ_LEN,
    )
    lora: Lora | None = identity(
        None,
        "train low-rank additions to the frozen model; then lr is 2e-5 and min_lr 2e-6 unless "
        "given",
    )

    _unpaired: bool = PrivateAttr(default=False)
    _most_sequences: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_whole(self) -> Prefer:
        """Refuse what does not fit together; fill in what the job leaves open."""
        weighted = self.desirable_weight != 1 or self.undesirable_weight != 1
        # Whether the data has labels is seen when it is read.
        self._unpaired = weighted and self.loss == "apo-zero"
        mistakes = mistakes_of(self._settings) or mistakes_of(check_preference, self._settings())
        needed = self.loss not in WITHOUT_REFERENCE
        if self.reference is not None and not needed:
            mistakes.append(f"reference: the loss {self.loss} has none; remove `reference`")
        if self.reference == "none" and needed and self.loss not in REFERENCE_CAN_BE_NONE:
            mistakes.append(
                f"reference: the loss {self.loss} needs one; remove `reference`, or use "
                f"{', '.join(REFERENCE_CAN_BE_NONE)}"
            )
        refuse(self, mistakes)
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
    def preference(self) -> Preference:
        """How the stage learns. Whether from single answers is known after `know_kind`."""
        return self._settings()

    @property
    def needs_reference(self) -> bool:
        """Whether the model is compared with the one that the stage starts from."""
        return self.reference == "start"

    def know_most_sequences(self, count: int) -> None:
        """Learn how many answers the fullest row of the data has."""
        self._most_sequences = count

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
