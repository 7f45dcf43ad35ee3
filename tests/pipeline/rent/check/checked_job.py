"""A tiny job to check, and helpers that judge a check's rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.rent.check.command import CheckRow, run_checks
from tests.support.jobs import tiny_dict


@dataclass
class Case:
    """A tiny job whose data exists, in a folder store unless told otherwise."""

    folder: Path

    def path(self, **changes: Any) -> Path:
        """Write the job file with these fields changed; `__` replaces the dots of a path."""
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump({"store": str(self.folder / "runs")} | tiny_dict(**changes)))
        return path

    def job(self, **changes: Any) -> Job:
        return load_job(self.path(**changes))

    def rows(self, **changes: Any) -> dict[str, CheckRow]:
        """Return the rows of the job without a rental."""
        return {row.name: row for row in run_checks(self.job(**changes), None)}


def wrong(row: CheckRow, *words: str) -> None:
    assert row.ok is False, row
    for word in words:
        assert word in row.words, row


def unknown(row: CheckRow, *words: str) -> None:
    assert row.ok is None, row
    for word in words:
        assert word in row.words, row
