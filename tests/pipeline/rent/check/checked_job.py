"""A tiny job to check, and helpers that judge a check's rows."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import yaml

from pipeline.job.file import load_job
from pipeline.rent.check.command import checks_of, outcome
from pipeline.rent.check.data import check_rows
from tests.support.jobs import tiny_dict


@dataclass
class Case:
    """A tiny job whose data exists, in a folder store unless told otherwise."""

    folder: Path

    def path(self, **changes):
        """Write the job file with these fields changed; `__` replaces the dots of a path."""
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump({"store": str(self.folder / "runs")} | tiny_dict(**changes)))
        return path

    def job(self, **changes):
        return load_job(self.path(**changes))

    def row(self, name, nth=0, **changes):
        """Return a row of the job without a rental, of the one check that it belongs to."""
        return row_of(name, self.job(**changes), nth=nth)


# The check whose rows have other names. All machines are of `machines`.
CHECK_OF = {
    "documents": "rows",
    "conversations": "rows",
    "vocabulary": "rows",
    "data.sources.0": "data",
    "sft.sources.0": "data",
    "run": "store",
    "inputs": "store",
    "room": "store",
    "model.experts": "store",
    "temporary keys": "credentials",
    "Hub login": "credentials",
    "publish from there": "files",
}


def row_of(name, job, on=None, path=None, *, force=None, check=None, nth=None):
    """Return one row as `pion check` shows it, by the check that it belongs to alone: the `nth` of
    this name; None if there is no such row."""
    checks = {"rows": partial(check_rows, job), **checks_of(job, on, path, force=bool(force))}
    check = check or (name if name in checks else CHECK_OF.get(name, "machines"))
    rows = outcome(check, lambda left: list(checks[check]()), math.inf, 0.0)
    return next(islice((row for row in rows if row.name == name), nth or 0, None), None)


def wrong(row, *words):
    assert row.ok is False, row
    for word in words:
        assert word in row.words, row


def unknown(row, *words):
    assert row.ok is None, row
    for word in words:
        assert word in row.words, row
