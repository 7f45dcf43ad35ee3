"""What is said about a run with a deadline."""

import pytest

from pipeline.job.runtime_sections import parse_moment
from pipeline.rent.deadline.policy import Seen, Situation, Terms
from pipeline.rent.managed.keep import deadline_words

HOUR, MINUTE = 3600.0, 60.0
# A Monday.
NOW = parse_moment("2026-11-30T11:00Z")
AT = parse_moment("2026-12-01T18:00Z")


def test_a_late_run_is_told_by_how_much_and_that_its_deadline_is_over():
    terms = Terms(AT, margin=0.0, boot=0.1 * HOUR, handover=0.0, lag=0.0, notice=0.0, life=HOUR)
    said = deadline_words.outlook(Situation(terms, Seen(AT + 2 * HOUR, HOUR)))
    assert said == "deadline 18:00 UTC (2 h ago); 60 min of work on demand; late by 3.1 h"


def test_without_time_left_somebody_must_watch_at_once():
    assert "from now on" in deadline_words.watch_by(NOW, NOW)


def test_renting_on_demand_says_that_the_spot_machine_is_silent():
    silent = deadline_words.renting_on_demand("2 × A40", None, None, now=NOW, waited_since=None)
    assert silent == (
        "the spot machine is silent or slower than thought, and the margin is reached: renting "
        "2 × A40 on demand, at an unknown price"
    )


@pytest.mark.parametrize(
    ("slack", "lasts"), [(40 * MINUTE, "slack lasts 40 min more"), (-1, "the slack is used up")]
)
def test_machines_on_demand_that_do_not_come_are_named(slack, lasts):
    said = deadline_words.none_on_demand("A40 or L40S", 20 * MINUTE, slack)
    assert said == f"no A40 or L40S on demand in 20 min; SkyPilot keeps asking; {lasts}"


def test_a_missed_deadline_says_why_if_that_is_known():
    night = (NOW - 12 * HOUR + 10 * MINUTE, NOW - 4 * HOUR - 20 * MINUTE)
    assert deadline_words.missed(2.1 * HOUR, now=NOW, unwatched=night) == (
        "the deadline is missed by 2.1 h: nobody watched from 23:10 UTC Sun to 06:40 UTC; on "
        "demand to the end"
    )
    assert deadline_words.missed(HOUR, now=NOW, refused=1800) == (
        "the deadline is missed by 60 min: no machine on demand could be had for 30 min; on demand "
        "to the end"
    )
    assert deadline_words.missed(120, now=NOW) == (
        "the deadline is missed by 2 min; on demand to the end"
    )


def test_a_moment_in_more_than_a_week_has_its_date():
    assert deadline_words.clock(NOW + 8 * deadline_words.DAY, NOW) == "2026-12-08 11:00 UTC"
