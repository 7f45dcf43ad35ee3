"""A job's deadline is a number of hours or a moment with a zone, in the file and in overrides."""

from __future__ import annotations

import pytest

from pipeline.job.file import job_text, load_job, parse_job
from tests.pipeline.job.conftest import GOOD, complaint

# 2026-12-01 18:00 UTC.
SIX = 1_796_148_000.0


def test_a_job_has_no_deadline_unless_it_says_so(job_file):
    assert load_job(job_file()).deadline is None
    assert (
        load_job(job_file(f"{GOOD}deadline: {{hours: 42}}\n"), ["deadline=null"]).deadline is None
    )


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


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{at: 2026-12-01T18:00}", "deadline.at: '2026-12-01T18:00': the zone is missing"),
        ("{at: 2026-12-01T18:00:00}", "the zone is missing: write 2026-12-01T18:00:00Z for UTC"),
        ("{at: 2026-12-01}", "not a moment with a day, a time and a zone"),
        ("{at: tomorrow}", "deadline.at: 'tomorrow': not a moment"),
        ("{at: 18:00}", "not a moment"),
        ("{at: 1796148000}", "1796148000: not a moment"),
        ("{at: [2026]}", "not a moment"),
        ("{at: 2026-13-01T18:00:00Z}", "there is no such day or time"),
        ("{at: 2026-12-01T18:00+25:00}", "there is no such day or time"),
        ("{at: ２026-12-01T18:00Z}", "not a moment"),
        ("{at: 0001-01-01T00:00Z}", "only moments from 1970 to 9999"),
        ("{at: 9999-12-31T23:59-14:00}", "only moments from 1970 to 9999"),
        ("{hours: 42 h}", "deadline.hours: '42 h' should be a number"),
        ("{hours: yes}", "deadline.hours: true should be a number"),
        ("{hours: 0}", "deadline.hours: 0 should be greater than 0"),
        ("{hours: .inf}", "should be a finite number"),
        ("{hours: 30001}", "should be at most 30,000"),
        ("{hours: 1, margin: -1}", "deadline.margin: -1 should be greater than or equal to 0"),
        ("{hours: 1, margin: 30 min}", "deadline.margin: '30 min' should be a number"),
        ("{hours: 1, at: 2026-12-01T18:00Z}", "both hours and at are given"),
        ("{margin: 60}", "neither hours nor at is given"),
        ("{}", "neither hours nor at is given"),
        ("42", "deadline: 42 should be a section"),
        ("{hour: 1}", "did you mean `deadline.hours`?"),
    ],
)
def test_a_mistake_is_one_message_with_its_line_and_key(job_file, written, expected):
    message = complaint(job_file(f"{GOOD}deadline: {written}\n"))
    assert expected in message
    assert "nothing was started" in message
    line = GOOD.count("\n") + 1
    assert f"  line {line}  deadline" in message
