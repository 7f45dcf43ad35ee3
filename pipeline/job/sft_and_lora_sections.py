"""The job file: what stages that learn from conversations have, LoRA, and fine-tuning.

A changed default or a new field moves digests: see train_sections.py.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from pion.config.lora import ALL_LINEAR
from pion.config.lora import Lora as LoraSettings
from pion.config.part_fields import FACTOR, SEQ_LEN, WIDTH
from pion.data.chat.template_source import with_settings
from pion.later_fields import shown
from pipeline.job.data_section import ConversationSource, PreferenceSource
from pipeline.job.phase_sections import Phase
from pipeline.job.section import (
    STEPS,
    Section,
    identity,
    made,
    mistakes_of,
    refuse,
    scheduled,
)
from pipeline.job.train_sections import WARMUP, Train

# Defaults of `sft` where the run starts from a trained model.
EPOCHS_FROM_BASE, BATCH_FROM_BASE = 3.0, 16


def how_to_use_lora(stage: str, same_as: str | None = None) -> str:
    """Return what to write in a job to use LoRA in a stage, with the settings of the stage
    `same_as` if there is one."""
    if same_as is not None:
        return f"write the same `lora` below {stage} as below {same_as}"
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
        "bfloat16: round the frozen base, which then takes half the memory; unset: keep the base's "
        "values, stored in bfloat16 if this changes no value",
    )
    dropout: float = identity(
        0.0,
        "dropout before the additions. Only 0 is allowed, because a run that resumes with another "
        "number of workers could not draw the same random numbers",
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
        return refuse(
            dropout, made({"LoRA trains without dropout here; remove `dropout`": dropout})
        )

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
    # The settings of other sections that decide the rows.
    rows_depend_on: ClassVar[tuple[str, ...]]

    steps: int | None = scheduled(None, "optimizer steps; unset: epochs decides", gt=0, most=STEPS)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "cosine", "after the warm-up: wsd (stable, then decay), cosine, or constant"
    )
    phases: list[Phase] = scheduled(
        [], "phases with their own rates, recipe sizes and trained bands, in order", before=[]
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
        "chat template. auto: the template of model.from, if it has one, else Pion's own; pion: "
        "Pion's own",
        before="auto",
    )
    system: str | None = identity(
        None,
        "system message of conversations without one, in place of the chat template's own; unset: "
        "the chat template's own",
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
        frozen["optimizer: LoRA trains with adamw; remove `optimizer`"] = self.optimizer != "adamw"
        return refuse(self, made(frozen))

    @property
    def passes(self) -> float:
        """The passes over the data, where the job gives them in place of steps."""
        assert self.epochs is not None
        return self.epochs

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Conversations:
        both, alone = self.steps is not None, self.steps is None and self.phases
        mistakes = {
            "epochs: steps is given too; remove one of the two": both,
            "epochs: phases need steps; give steps in place of epochs": alone,
        }
        return self if self.epochs is None else refuse(self, made(mistakes))


class Sft(Conversations):
    rates_of_lora: ClassVar = {"lr": 2e-4, "min_lr": 2e-5, "weight_decay": 0.0}
    rows_depend_on: ClassVar = ("data.held_out",)

    epochs: float | None = scheduled(
        None,
        "passes over the conversations, in place of steps; with model.from and without steps: 3",
        before=None,
        gt=0,
        most=10_000,
    )
    lr: float = scheduled(2e-5, "peak learning rate", gt=0, most=FACTOR)
    min_lr: float = scheduled(2e-6, "learning rate at the end of the schedule", ge=0, most=FACTOR)
    warmup_steps: int = scheduled(100, WARMUP, ge=0, most=STEPS)
    weight_decay: float = scheduled(
        0.01, "decoupled weight decay of matrices and embeddings", ge=0, most=FACTOR
    )
    sources: list[ConversationSource] = identity(..., "where the conversations come from")
    held_out: float = identity(
        0.01, "share of the conversations reserved for evaluation", gt=0, lt=0.5
    )

    def row_length(self, text: int, conversations: int) -> int:
        """Return the tokens in a row, by the length of rows of text and of conversations."""
        return conversations

    def defaults_from_base(self, seq_len: int) -> dict[str, Any]:
        """Return fields that the job leaves open, where the run starts from a trained model."""
        chosen: dict[str, Any] = {}
        if self.steps is None and self.epochs is None:
            chosen["epochs"] = EPOCHS_FROM_BASE
        if "global_batch" not in self.model_fields_set:
            chosen["global_batch"] = BATCH_FROM_BASE
        return chosen
