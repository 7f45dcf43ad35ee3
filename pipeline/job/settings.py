"""Turn a job's section into the settings of the trainer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pipeline.job.phases import phases_of
from pipeline.job.train_sections import Train

if TYPE_CHECKING:
    from pion.train.settings import TrainSettings


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
