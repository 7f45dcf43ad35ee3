"""The job file: the two training stages, and the settings of the trainer that follow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PrivateAttr, field_validator, model_validator

from pion.config.lora import ALL_LINEAR
from pion.config.lora import Lora as LoraSettings
from pion.config.part_fields import FACTOR, LAYERS, SEQ_LEN, WIDTH
from pion.data.chat.template_source import with_settings
from pion.errors import BadInput
from pion.later_fields import shown
from pion.train.phases import Phase as TrainPhase
from pion.train.phases import check_phases
from pipeline.job.recipe import Recipe
from pipeline.job.section import (
    BATCH,
    STEPS,
    Section,
    identity,
    made,
    mistakes_of,
    refuse,
    runtime,
    scheduled,
)
from pipeline.job.sources import ConversationSource

if TYPE_CHECKING:
    from pion.train.settings import TrainSettings


# What fine-tuning uses with LoRA where the job says nothing. Few weights are trained, from 0, so
# the rates are ten times those of full fine-tuning.
DEFAULTS = {"lr": 2e-4, "min_lr": 2e-5, "weight_decay": 0.0}
# What to write in a job to use LoRA.
HOW_TO_USE = (
    "write `sft: {lora: {rank: 16}}` next to the other fields of sft, or add sft.lora.rank=16 to "
    "the command"
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


class Phase(Section):
    """A part of the stage with its own rates, recipe sizes and trained bands."""

    until: float | int | None = scheduled(
        None,
        "where the phase ends: a share of the steps, such as 0.2, or a number of steps, such as "
        "3000; the last phase has none",
        most=STEPS,
    )
    rates: dict[str, float] = scheduled(
        {},
        "factors of the learning rates by role (matrix, router, embedding, head, primitive, "
        "recipe, gate, vector), and by `others` for all other roles; 0 freezes a role",
        most=FACTOR,
    )
    top_k: int | None = scheduled(
        None, "primitives in a recipe; unset: the model's", gt=0, most=4096
    )
    rank: int | None = scheduled(
        None, "ranks of each primitive in use; unset: all", gt=0, most=WIDTH
    )
    unfreeze: list[int] | None = scheduled(
        None,
        "the only bands whose layers and banks are trained, counted from 0; unset: all",
        most=LAYERS,
    )


def phases_of(phases: Sequence[Phase]) -> tuple[TrainPhase, ...]:
    """Return the trainer's phases."""
    return tuple(
        TrainPhase(
            until=phase.until,
            rates=phase.rates,
            top_k=phase.top_k,
            rank=phase.rank,
            only_bands=None if phase.unfreeze is None else tuple(phase.unfreeze),
        )
        for phase in phases
    )


_WARMUP = (
    "steps of linear warm-up; unset: the default, or a tenth of the steps where these are fewer"
)


class Train(Section):
    """The fields that both training stages have."""

    steps: int | None = scheduled(..., "optimizer steps", gt=0, most=STEPS)
    global_batch: int = identity(
        64, "sequences in one optimizer step, for any number of GPUs", gt=0, most=BATCH
    )
    lr: float = scheduled(3e-4, "peak learning rate of AdamW", gt=0, most=FACTOR)
    min_lr: float = scheduled(3e-5, "learning rate at the end of the schedule", ge=0, most=FACTOR)
    warmup_steps: int = scheduled(1000, _WARMUP, ge=0, most=STEPS)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "wsd", "after the warm-up: wsd (stable, then decay), cosine, or constant"
    )
    decay_shape: Literal["cosine", "linear"] = scheduled("cosine", "shape of the decay (wsd only)")
    decay_fraction: float = scheduled(
        0.2,
        "share of the steps that the decay at the end takes (wsd only)",
        gt=0,
        le=1,
    )
    optimizer: Literal["adamw", "muon"] = scheduled(
        "adamw",
        "adamw: AdamW for everything; muon: Muon for the blocks' matrices, AdamW for the rest",
    )
    muon_lr: float = scheduled(0.02, "peak learning rate of Muon", gt=0, most=FACTOR)
    muon_momentum: float = scheduled(0.95, "momentum of Muon", ge=0, lt=1)
    muon_momentum_start: float | None = scheduled(
        None,
        "momentum of Muon at the start, which rises to muon_momentum at the end; unset: constant",
        before=None,
        ge=0,
        lt=1,
    )
    muon_decays: bool = scheduled(
        True, "let muon_lr follow the schedule; false: it is constant", before=True
    )
    embedding_lr: float | None = scheduled(
        None,
        "peak learning rate of embeddings and value tables; unset: lr",
        before=None,
        gt=0,
        most=FACTOR,
    )
    head_lr: float | None = scheduled(
        None, "peak learning rate of an untied head; unset: lr", before=None, gt=0, most=FACTOR
    )
    vector_lr: float | None = scheduled(
        None, "peak learning rate of gains and scalars; unset: lr", before=None, gt=0, most=FACTOR
    )
    window_schedule: Literal["constant", "cubic"] = scheduled(
        "constant",
        "cubic: a model's windows grow from one block to their full size over the run",
        before="constant",
    )
    weight_decay: float = scheduled(
        0.1, "decoupled weight decay of matrices and embeddings", ge=0, most=FACTOR
    )
    primitive_weight_decay: float = scheduled(
        0.0,
        "decoupled weight decay of primitives, while a recipe uses them",
        before=0.0,
        ge=0,
        most=FACTOR,
    )
    phases: list[Phase] = scheduled(
        [], "phases with their own rates, recipe sizes and trained bands, in order", before=[]
    )
    beta1: float = scheduled(0.9, "decay rate of AdamW's first moment", ge=0, lt=1)
    beta2: float = scheduled(0.95, "decay rate of AdamW's second moment", ge=0, lt=1)
    eps: float = scheduled(1e-8, "AdamW's epsilon", gt=0, most=FACTOR)
    clip: float = scheduled(1.0, "limit of the gradient's norm; 0: no limit", ge=0, most=10**9)
    max_spike: float | None = runtime(
        None,
        "roll back a step whose loss exceeds this multiple of the recent median; unset: no limit",
        gt=1,
        most=10**9,
    )
    pause_at: int | None = runtime(
        None,
        "save after this step and stop with exit code 4. A later start with a larger value, or "
        "without one, continues; the schedule is that of all steps; unset: do all steps",
        gt=0,
        most=STEPS,
    )
    init_from: str | None = identity(
        None,
        "start from a run, checkpoint, exported folder, Hub repository or .pt file; unset: "
        "pretrain starts from random weights, and sft from the pretrained model",
    )

    _warmup_given: bool = PrivateAttr(default=True)
    _rows: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _schedule_fits(self) -> Train:
        self._warmup_given = "warmup_steps" in self.model_fields_set
        mistakes = [] if self.steps is None else self._fit_steps(self.steps)
        start, momentum = self.muon_momentum_start, self.muon_momentum
        too_high = {
            f"min_lr: {self.min_lr} is above lr {self.lr}": self.min_lr > self.lr,
            f"muon_momentum_start: {start} is above muon_momentum {momentum}": (
                start is not None and start > momentum
            ),
        }
        return refuse(self, mistakes + made(too_high))

    def _fit_steps(self, steps: int) -> list[str]:
        """Shorten the default warm-up if need be; return what does not fit into `steps`."""
        if not self._warmup_given and self.warmup_steps >= steps:
            self.warmup_steps = steps // 10
        mistakes = []
        if self.warmup_steps >= steps:
            mistakes.append(f"warmup_steps: {self.warmup_steps} must be below steps {steps}")
        return mistakes + mistakes_of(check_phases, phases_of(self.phases), steps)

    def know_rows(self, rows: int) -> None:
        """Learn how many rows the stage's data has, from which its steps may follow.

        Raises BadInput if the schedule does not fit into the steps.
        """
        self._rows = rows
        steps, warmup = self.total_steps, self.total_warmup_steps
        if warmup >= steps:
            raise BadInput(
                f"warmup_steps: {warmup} must be below the {steps} steps that the data gives "
                f"({rows:,} rows). Nothing was lost. Lower warmup_steps, or give more data "
                "or epochs"
            )

    @property
    def total_steps(self) -> int:
        """The optimizer steps: as given, or for the passes over the rows that `know_rows` gave."""
        if self.steps is not None:
            return self.steps
        assert self._rows is not None, "the rows of the data are not known yet"
        return max(1, math.ceil(self.passes * self._rows / self.global_batch))

    @property
    def steps_are_known(self) -> bool:
        """Whether `total_steps` can be asked for."""
        return self.steps is not None or self._rows is not None

    @property
    def passes(self) -> float:
        """The passes over the data, where the job gives them in place of steps."""
        raise AssertionError("a stage without steps has epochs")

    @property
    def total_warmup_steps(self) -> int:
        """The steps of the warm-up, at most a tenth of all steps unless the job names them."""
        if self._warmup_given or self.warmup_steps < self.total_steps:
            return self.warmup_steps
        return self.total_steps // 10

    @property
    def warmup_given(self) -> bool:
        """Whether the job names the steps of its warm-up."""
        return self._warmup_given


class Pretrain(Train):
    recipe: Recipe | None = runtime(
        None,
        "pion2: optimizer, rates and schedule of Pion 2 for this width and these steps, where you "
        "give no others (docs/recipes.md); unset: each field's default",
    )
    steps: int = scheduled(..., "optimizer steps", gt=0, most=STEPS)


class Sft(Train):
    steps: int | None = scheduled(None, "optimizer steps; unset: epochs decides", gt=0, most=STEPS)
    epochs: float | None = scheduled(
        None,
        "passes over the conversations, in place of steps; with model.from and without steps: 3",
        before=None,
        gt=0,
        most=10_000,
    )
    lr: float = scheduled(2e-5, "peak learning rate of AdamW", gt=0, most=FACTOR)
    min_lr: float = scheduled(2e-6, "learning rate at the end of the schedule", ge=0, most=FACTOR)
    warmup_steps: int = scheduled(100, _WARMUP, ge=0, most=STEPS)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "cosine", "after the warm-up: wsd (stable, then decay), cosine, or constant"
    )
    weight_decay: float = scheduled(
        0.01, "decoupled weight decay of matrices and embeddings", ge=0, most=FACTOR
    )
    sources: list[ConversationSource] = identity(..., "where the conversations come from")
    held_out: float = identity(
        0.01, "share of the conversations reserved for evaluation", gt=0, lt=0.5
    )
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
        return DEFAULTS | section if has_lora else section

    @model_validator(mode="after")
    def _lora_fits(self) -> Sft:
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
        """The passes over the conversations, where the job gives them in place of steps."""
        assert self.epochs is not None
        return self.epochs

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Sft:
        if self.steps is not None and self.epochs is not None:
            return refuse(self, ["epochs: steps is given too; remove one of the two"])
        if self.epochs is not None and self.phases:
            return refuse(self, ["epochs: phases need steps; give steps in place of epochs"])
        return self


def settings_of(section: Train) -> TrainSettings:
    """Return the trainer's settings in a section of the job, whose steps are known."""
    from pion.train.settings import TrainSettings

    given = section.model_dump(include={f.name for f in dataclasses.fields(TrainSettings)})
    return TrainSettings(
        **given
        | {
            "steps": section.total_steps,
            "warmup_steps": section.total_warmup_steps,
            "phases": phases_of(section.phases),
        }
    )
