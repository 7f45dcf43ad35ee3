"""A job's deadline is a number of hours or a moment with a zone, in the file and in overrides."""

import pytest

from pipeline.job.file import job_text, load_job, parse_job
from tests.pipeline.job.conftest import GOOD

# 2026-12-01 18:00 UTC.
SIX = 1_796_148_000.0


def test_a_job_has_no_deadline_unless_it_says_so(job_file):
    assert load_job(job_file()).deadline is None
    with_deadline = job_file(f"{GOOD}deadline: {{hours: 42}}\n")
    assert load_job(with_deadline, ["deadline=null"]).deadline is None


def test_hours_are_a_number_and_the_margin_is_30_minutes_unless_given(job_file):
    deadline = load_job(job_file(f"{GOOD}deadline: {{hours: 42}}\n")).deadline
    assert (deadline.hours, deadline.moment, deadline.margin) == (42, None, 1800)
    changed = load_job(job_file(), ["deadline.hours=1.5", "deadline.margin=0"]).deadline
    assert (changed.hours, changed.margin) == (1.5, 0)


@pytest.mark.parametrize(
    "written",
    [
        "2026-12-01T18:00Z",
        "2026-12-01T18:00:00Z",  # YAML would read this one by itself
        "2026-12-01 18:00:00.0 Z",
        "2026-12-01t18:00z",
        "2026-12-01T19:00+01:00",
        "2026-12-01T12:30:00-05:30",
    ],
)
def test_a_moment_may_be_quoted_or_not_in_the_file_and_in_overrides(job_file, written):
    for value in (written, f"'{written}'", f'"{written}"'):
        assert load_job(job_file(f"{GOOD}deadline: {{at: {value}}}\n")).deadline.moment == SIX
        assert load_job(job_file(), [f"deadline.at={value}"]).deadline.moment == SIX


@pytest.mark.parametrize("written", ["2026-12-01T18:00Z", "2026-12-01T18:00:00+01:00"])
def test_the_record_of_a_job_keeps_the_moment(job_file, written):
    path = job_file()
    recorded = parse_job(job_text(path, [f"deadline.at={written}"]), "the record")
    assert recorded.deadline == load_job(path, [f"deadline.at={written}"]).deadline
