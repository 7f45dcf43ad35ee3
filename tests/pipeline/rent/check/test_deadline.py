"""What `pion check` and `pion launch` refuse, and say, of a job with a deadline."""

import time
from dataclasses import replace

import pytest

from pion.errors import BadInput
from pipeline.rent.check.command import show_check
from pipeline.rent.check.deadline import check_deadline, machines_in_time
from pipeline.rent.deadline.times import on_demand_machines
from pipeline.rent.plan.prices import RESTART_SECONDS
from pipeline.rent.plan.speeds import NOTHING_KNOWN, Known, PastSpeed
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.claim import claim_run
from pipeline.state.notes.deadline import Asked, new_deadline, write_first_deadline
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.pipeline.rent.check.checked_job import unknown
from tests.support.states import an_entry, list_checkpoint

MIXED = """any_of:
  - {accelerators: A40, use_spot: true}
  - {accelerators: RTXA4000, use_spot: true}
  - {accelerators: A40, use_spot: false}
  - {accelerators: RTXA4000, use_spot: false}"""
# Hours of work, for a model that is large enough that the card decides how long a step takes.
LONG = {
    "model": {"d_model": 512, "n_layers": 2, "n_heads": 8, "n_kv_heads": 8, "d_ff": 2048},
    "pretrain__steps": 1_000_000,
    "pretrain__global_batch": 512,
}


@pytest.fixture
def mixed(sky_home):
    return read_sky_yaml(sky_home.yaml(MIXED))


def rows(case, on, *, force=False, **changes):
    found = check_deadline(case.job(**LONG, **changes), on, force=force)
    return {
        f"{row.name} {n}" if row.name == "deadline" else row.name: row
        for n, row in enumerate(found)
    }


def machine(case, on, gpu="A40", **more):
    machines = on_demand_machines(case.job(**LONG), on, None, more.get("known", NOTHING_KNOWN))
    return next(machine for machine in machines if machine.gpu == gpu)


def hours_for(case, on, gpu, spare=0.0):
    """Return a deadline in hours that leaves just the margin, and `spare` seconds, on this GPU."""
    found = machine(case, on, gpu)
    deadline = new_deadline(Asked(1.0, None, 1800), "x", time.time())
    return (found.work + RESTART_SECONDS + found.margin(deadline) + spare) / 3600


# ---------------------------------------------------------------- how long the work takes


def test_an_estimated_speed_is_taken_as_slower_and_asks_for_a_tenth_of_the_work_as_margin(
    case, mixed
):
    found = machine(case, mixed)
    guess = found.work
    assert not found.measured
    deadline = new_deadline(Asked(1.0, None, 60), "x", time.time())
    assert found.margin(deadline) == pytest.approx(max(1800, guess / 10))
    speed = PastSpeed("earlier", 0.0, "NVIDIA A40", 32, 1e6)
    talks = PastSpeed("earlier", 0.0, "NVIDIA A40", 96, 1e6)
    job = case.job(**LONG)
    (known, *_) = on_demand_machines(job, mixed, None, Known([speed, talks]))
    assert known.gpu == "A40"
    assert known.measured
    assert known.margin(deadline) == 60
    assert known.work == pytest.approx((1e6 * 512 * 32 + 10 * 4 * 96) / 1e6)


def test_committed_steps_are_no_longer_work(case, mixed):
    from pipeline.job.digest import digest_job

    job = case.job(pretrain__steps=1000, sft=None)
    claim = claim_run(RunState(open_store(job.store), job.name), Owner.me())
    digest = digest_job(job).stages["pretrain"]
    list_checkpoint(claim, an_entry(250, digest=digest))
    head = claim.state.read()

    def work(head):
        return on_demand_machines(job, mixed, head, NOTHING_KNOWN)[0].work

    assert work(head) == pytest.approx(0.75 * work(None))
    claim.finish_stage("pretrain", digest, {})
    assert work(claim.state.read()) == 0


# ---------------------------------------------------------------- what is refused


def test_slack_below_the_margin_is_refused_with_the_numbers(case, mixed):
    hours = hours_for(case, mixed, "A40", spare=-60)
    work = (machine(case, mixed).work or 0) / 3600
    with pytest.raises(BadInput) as refused:
        rows(case, mixed, deadline={"hours": hours})
    for words in (
        f"{work:.1f} h of work on A40 on demand, {hours:.1f} h left, and a margin of",
        "estimated: 15% MFU assumed",
        "1/0.9 of the estimated time",
        "of work on RTXA4000 on demand",
        "deadline.hours, deadline.at or deadline.margin in the job",
    ):
        assert words in str(refused.value)


def test_a_machine_that_is_too_slow_is_named_if_another_one_is_in_time(case, mixed):
    shown = rows(case, mixed, deadline={"hours": hours_for(case, mixed, "A40", spare=60)})
    assert shown["A40 on demand"].ok
    unknown(shown["RTXA4000 on demand"], "too slow for the deadline")
    assert "must be requested by" in shown["deadline 0"].words
    assert "2 on-demand entries are held back" in shown["deadline 1"].words


def test_an_on_demand_machine_whose_speed_nobody_knows_is_refused(case, mixed):
    deadline = new_deadline(Asked(100.0, None, 60), "x", time.time())
    known = machine(case, mixed)
    unmeasured = replace(known, seconds=None, words="pretrain: the speed of a A40 is unknown")
    about = deadline, deadline.set_at, mixed.path, "change it"
    with pytest.raises(BadInput, match=r"not known how long .* speed of a A40.*`pion bench`"):
        machines_in_time([unmeasured], *about)
    assert machines_in_time([unmeasured, known], *about) == [known]


@pytest.mark.parametrize(("spare", "is_late"), [(1000 * 3600.0, False), (-7200.0, True)])
def test_the_deadline_in_the_store_counts_and_not_the_jobs(case, mixed, spare, is_late):
    job = case.job(**LONG)
    run = RunState(open_store(job.store), job.name)
    now = run.clock.now()
    write_first_deadline(run, new_deadline(Asked(None, now + spare, 1800.0), "pion launch", now))
    if not is_late:
        assert rows(case, mixed)["deadline 0"].ok  # the job says nothing
        assert rows(case, mixed, deadline={"hours": 0.1})["deadline 0"].ok
        return
    with pytest.raises(BadInput, match=r"late by 2\.0 h") as refused:
        rows(case, mixed)
    assert f"pion deadline {run.url} --hours N, --at T or --off" in str(refused.value)


# ---------------------------------------------------------------- through `pion check`


def test_a_deadline_in_the_past_is_a_mistake_of_the_job_with_its_line(case, capsys):
    path = case.path(deadline={"at": "2020-01-01T00:00Z"})
    assert show_check(str(path), [], on=None, force=False, as_json=False) == 2
    out = " ".join(capsys.readouterr().out.split())
    line = next(
        n for n, text in enumerate(path.read_text().splitlines(), 1) if "2020-01-01" in text
    )
    assert f"line {line} deadline.at: 2020-01-01T00:00Z was" in out
