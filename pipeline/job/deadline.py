"""The job file: the deadline of a run, and how a moment in time is written."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from pydantic import field_validator, model_validator

from pipeline.job.section import HOURS, SECONDS, Section, refuse, runtime

EXAMPLE = "2026-12-01T18:00Z"
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
            raise ValueError(_no_moment())
        parse_moment(text)
        return text

    @model_validator(mode="after")
    def _either(self) -> Deadline:
        if self.hours is not None and self.at is not None:
            return refuse(self, ["both hours and at are given; keep one of the two"])
        if self.hours is None and self.at is None:
            return refuse(
                self, [f"neither hours nor at is given; give one: hours: 42, or at: {EXAMPLE}"]
            )
        return self

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
        raise ValueError(_no_moment())
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


def _no_moment() -> str:
    return f"not a moment with a day, a time and a zone, such as {EXAMPLE}"
