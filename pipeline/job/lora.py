"""The table `sft.lora` of the job file; see pion/lora.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from pion.errors import BadInput
from pion.later_fields import shown
from pion.lora import ALL_LINEAR
from pion.lora import Lora as LoraSettings
from pipeline.job.section import FACTOR, WIDTH, Section, identity

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
        try:
            self.settings()
        except BadInput as error:
            raise ValueError(str(error)) from None
        return self

    def settings(self) -> LoraSettings:
        """Return the library's settings. Raises BadInput for values that make no sense."""
        targets = self.targets if self.targets == ALL_LINEAR else tuple(self.targets)
        return LoraSettings(self.rank, self.alpha, targets, self.base_dtype)


def with_defaults(section: Any) -> Any:
    """Return the values of a job's `sft` with LoRA's rates where they are not given."""
    if not isinstance(section, dict) or section.get("lora") is None:
        return section
    return DEFAULTS | section
