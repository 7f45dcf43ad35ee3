"""Which deadline holds for a run that is rented for, and what is said about it."""

import dataclasses

import pytest
import yaml

from pion.errors import BadInput
from pipeline.rent.deadline.at_launch import deadline_of, held_back, keeping_deadline, refuse_past
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.notes.deadline import change_deadline, read_deadline
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError
from tests.support.jobs import tiny_dict, tiny_job

FOREVER = "2999-12-01T18:00Z"


def job(**deadline):
    return tiny_job(deadline=deadline) if deadline else tiny_job()


def rent(run, job, said):
    with keeping_deadline(run, job, "pion launch", said.append):
        pass
    return read_deadline(run)


def test_the_first_launch_writes_what_the_job_asks_for(run, time, said):
    record = rent(run, job(hours=42), said)
    assert record.at == time.time + 42 * 3600
    assert len(said) == 1
    assert "deadline: 1970-01-14 07:46:40 UTC (in 1 d 18 h); set by pion launch" in said[0]


def test_a_relaunch_keeps_the_deadline_and_counts_no_hours_again(run, time, said):
    first = rent(run, job(hours=42), said)
    time.sleep(7200)
    assert rent(run, job(hours=42), said) == first
    assert len(said) == 2, "the job says what it said before"
    assert deadline_of(run, job(hours=42)) == first


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hours": 30}, "the job now says deadline.hours 30"),
        ({"hours": 42, "margin": 60}, "with a margin of 1 min 00 s"),
        ({"at": FOREVER}, "the job now says deadline.at 2999-12-01 18:00:00 UTC"),
        ({}, "the job now says no deadline"),
    ],
)
def test_a_job_whose_deadline_changed_is_told_which_one_holds_and_how_to_change_it(
    run, said, changed, says
):
    first = rent(run, job(hours=42), said)
    assert rent(run, job(**changed), said) == first
    assert says in said[-1]
    assert "and said deadline.hours 42, with a margin of 30 min 00 s before" in said[-1]
    assert (
        f"The deadline above holds, and not the job's. To change it: pion deadline {run.url}"
        in (said[-1])
    )


def test_a_run_without_a_deadline_gets_none_and_nothing_is_said(run, said):
    assert rent(run, job(), said) is None
    assert said == []
    assert deadline_of(run, job()) is None


def test_a_deadline_that_was_switched_off_holds_back_nothing(run, said):
    first = rent(run, job(hours=42), said)
    change_deadline(run, lambda old: dataclasses.replace(first, at=None))
    assert deadline_of(run, job(hours=42)) is None
    assert rent(run, job(hours=42), said) == dataclasses.replace(first, at=None)
    assert "deadline: none (switched off)" in said[-1]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (BadInput("refused"), False),
        (StoreError("write", "it", "down"), False),
        (KeyboardInterrupt(), True),  # it may have begun
    ],
)
def test_a_rental_that_was_refused_leaves_no_deadline_that_counts_from_it(run, said, error, kept):
    rental = keeping_deadline(run, job(hours=42), "pion launch", said.append)
    with pytest.raises(type(error)), rental:
        raise error
    assert (read_deadline(run) is not None) == kept


def test_a_relaunch_that_was_refused_keeps_the_first_deadline(run, said):
    first = rent(run, job(hours=42), said)
    with pytest.raises(BadInput), keeping_deadline(run, job(hours=42), "pion launch", said.append):
        raise BadInput("refused")
    assert read_deadline(run) == first


def test_a_past_moment_is_refused_with_its_line_and_that_of_a_late_run_is_not(tmp_path, said):
    path = tmp_path / "job.yaml"
    text = yaml.safe_dump(tiny_dict(store=str(tmp_path / "runs")))
    path.write_text(f"deadline: {{at: 2020-01-01T00:00Z}}\n{text}")
    late = tiny_job(store=str(tmp_path / "runs"), deadline={"at": "2020-01-01T00:00Z"})
    with pytest.raises(
        BadInput, match=r"1 mistake.*\n  line 1  deadline.at: 2020-01-01T00:00Z was"
    ):
        refuse_past(str(path), [], late)
    with pytest.raises(BadInput, match=r"command line  deadline.at"):
        refuse_past(str(path), ["deadline.at=2020-01-01T00:00Z"], late)
    from pipeline.state.stores import open_store

    rent(RunState(open_store(late.store), late.name), late, said)
    refuse_past(str(path), [], late)


@pytest.mark.parametrize(
    ("resources", "waited", "kept"),
    [
        ("any_of: [{use_spot: true}, {use_spot: false}]", [True], [False]),
        ("use_spot: true", [True], []),
        ("use_spot: false", [False], []),
    ],
)
def test_machines_on_demand_are_held_back_unless_there_are_no_others(
    sky_home, resources, waited, kept
):
    sky_yaml = read_sky_yaml(sky_home.yaml(f"accelerators: A40\n{resources}"))
    now, later = held_back(sky_yaml)
    assert [candidate.use_spot for candidate in now] == waited
    assert [candidate.use_spot for candidate in later] == kept
