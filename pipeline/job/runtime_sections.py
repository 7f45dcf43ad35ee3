"""The job file: saving, money and time, which change no result."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import field_validator, model_validator

from pion.config.part_fields import FACTOR
from pipeline.job.section import (
    DOLLARS,
    HOURS,
    SECONDS,
    STEPS,
    Section,
    made,
    refuse,
    runtime,
)


class Keep(Section):
    last: int = runtime(2, "number of newest checkpoints to keep", ge=2, most=10_000)
    every: int | None = runtime(
        None, "also keep each checkpoint whose step is a multiple of this number", gt=0, most=STEPS
    )
    best: bool = runtime(False, "also keep the checkpoint with the lowest held-out loss")


class Checkpoint(Section):
    every_steps: int | None = runtime(
        None, "steps between two checkpoints; unset: by time", gt=0, most=STEPS
    )
    every_seconds: float | None = runtime(
        None,
        "seconds between two checkpoints; unset: computed from preemption_hours and the time that "
        "a save takes",
        gt=0,
        most=SECONDS,
    )
    preemption_hours: float = runtime(
        2.0, "expected hours between two preemptions", gt=0, most=HOURS
    )
    keep: Keep = runtime(Keep(), "which checkpoints are kept")
    grace: float = runtime(4.0, "seconds to save the last step after SIGTERM", gt=0, most=SECONDS)
    max_undurable: float = runtime(
        1800.0,
        "pause training when the store has been down for this many seconds",
        gt=0,
        most=SECONDS,
    )
    linger: float | None = runtime(
        None,
        "seconds to retry when the store is down at the end of a stage; unset: 1800 on a rented "
        "machine, else 0",
        ge=0,
        most=SECONDS,
    )
    max_rewinds: int = runtime(3, "maximum number of rollbacks in a row", ge=0, most=10**6)


class Budget(Section):
    hours: float | None = runtime(
        None, "total machine hours of all attempts; unset: no limit", gt=0, most=10**7
    )
    dollars: float | None = runtime(
        None, "total dollars of all attempts; unset: no limit", gt=0, most=DOLLARS
    )
    dollars_per_hour: float | None = runtime(
        None,
        "price, in dollars per hour, of a machine that `pion launch` did not rent; used for "
        "budget.dollars",
        ge=0,
        most=FACTOR,
    )
    price_tolerance: float = runtime(
        1.2,
        "a rented machine may cost at most this many times the planned price. Pion asks RunPod for "
        "the price when the machine is up. If the machine costs more, the run stops before it "
        "works there",
        ge=1,
        most=FACTOR,
    )


@dataclass(frozen=True)
class Price:
    """What a GPU costs to rent, in dollars per hour; None if it is not offered that way."""

    spot: float | None = None
    on_demand: float | None = None


class Log(Section):
    every: int = runtime(10, "steps between two lines of metrics", gt=0, most=STEPS)
    tensorboard: str | None = runtime(
        None,
        "folder for TensorBoard's event files; needs the extra `tensorboard`; unset: no "
        "event files",
    )
    wandb: str | None = runtime(
        None,
        "project in Weights & Biases; needs the extra `wandb`; unset: Weights & Biases is not used",
    )
    trackio: str | None = runtime(
        None,
        "project in Trackio; needs the extra `trackio`; unset: Trackio is not used",
    )
    trackio_space: str | None = runtime(
        None,
        "Space on the Hub, such as user/trackio, to which Trackio writes; created private if it "
        "is not there; unset: a file of this machine",
    )

    @model_validator(mode="after")
    def _trackio_has_a_project(self) -> Log:
        mistake = "trackio: name a project, because trackio_space says where it is written"
        return refuse(self, made({mistake: self.trackio_space and not self.trackio}))


def price_of(gpu: str, value: Any) -> Price:
    """Return a GPU's price. A job gives one amount for both ways of renting, or one for each."""
    if isinstance(value, Price):
        return value
    given = value if isinstance(value, dict) else {"spot": value, "on_demand": value}
    for way, dollars in given.items():
        if way not in ("spot", "on_demand"):
            raise ValueError(f"{gpu}: unknown key {way!r}; the keys are spot, on_demand")
        number = isinstance(dollars, int | float) and not isinstance(dollars, bool)
        if dollars is not None and not (number and 0 <= dollars < float("inf")):
            raise ValueError(
                f"{gpu}: {dollars!r} is not an amount in dollars per hour, such as 0.44, or "
                "{spot: 0.2, on_demand: 0.44}"
            )
    return Price(**given)


EXAMPLE = "2026-12-01T18:00Z"
_NO_MOMENT = f"not a moment with a day, a time and a zone, such as {EXAMPLE}"
_MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?) ?([Zz]|[+-]\d{2}:\d{2})?",
    re.ASCII,
)
# 10000-01-01 00:00 UTC. Records in the store hold only earlier times.
_END = 253_402_300_800.0


class Deadline(Section):
    hours: float | None = runtime(
        None,
        "hours until the run should be done, counted from its first `pion launch`",
        gt=0,
        most=HOURS,
    )
    at: str | None = runtime(
        None,
        f"the moment at which the run should be done, such as {EXAMPLE} or "
        "2026-12-01T18:00+01:00. The zone is required, seconds are not",
    )
    margin: float = runtime(
        1800.0,
        "seconds to spare: `pion launch` plans to be done this long before the deadline",
        ge=0,
        most=SECONDS,
    )

    @field_validator("at", mode="before")
    @classmethod
    def _a_moment(cls, at: Any) -> Any:
        if at is None:
            return at
        # YAML reads some times by itself. JobLoader does not, but values may come from elsewhere.
        text = at.isoformat() if isinstance(at, datetime) else at
        if not isinstance(text, str):
            raise ValueError(_NO_MOMENT)
        parse_moment(text)
        return text

    @model_validator(mode="after")
    def _either(self) -> Deadline:
        missing = (self.hours, self.at).count(None)
        mistakes = {
            "both hours and at are given; keep one of the two": missing == 0,
            f"neither hours nor at is given; give one: hours: 42, or at: {EXAMPLE}": missing == 2,
        }
        return refuse(self, made(mistakes))

    @property
    def moment(self) -> float | None:
        """The deadline in Unix seconds; None if the job gives hours."""
        return None if self.at is None else parse_moment(self.at)


def parse_moment(text: str) -> float:
    """Return the Unix seconds of a moment such as 2026-12-01T18:00Z.

    Raises ValueError, in words, for a text in another form, without a zone, or that is no date.
    """
    found = _MOMENT.fullmatch(text.strip())
    if found is None:
        raise ValueError(_NO_MOMENT)
    day, time, zone = found.groups()
    if zone is None:
        raise ValueError(f"the zone is missing: write {day}T{time}Z for UTC, or {day}T{time}+01:00")
    try:
        seconds = datetime.fromisoformat(f"{day}T{time}{zone.upper()}").timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"there is no such day or time; write it as {EXAMPLE}") from None
    if not 0 <= seconds < _END:
        raise ValueError("only moments from 1970 to 9999 can be a deadline")
    return seconds
