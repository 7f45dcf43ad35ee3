"""Turn a job's section into the settings of the trainer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pipeline.job.fields import Train
from pipeline.job.phases import phases_of

if TYPE_CHECKING:
    from pion.train.settings import TrainSettings


def settings_of(section: Train) -> TrainSettings:
    """Return the trainer's settings in a section of the job."""
    from pion.train.settings import TrainSettings

    names = {field.name for field in dataclasses.fields(TrainSettings)} - {"phases"}
    return TrainSettings(**section.model_dump(include=names), phases=phases_of(section.phases))
