"""`pion replay`: its numbers and their origins, and what it prints."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from pion.errors import BadInput
from pipeline.job.file import load_job
from pipeline.rent.replay.command import show_replay, timed_run
from pipeline.rent.replay.numbers import job_numbers
from pipeline.rent.replay.options import Given, Number
from pipeline.rent.replay.simulate import Outcome, sweep
from pipeline.rent.replay.summary import summarise
from pipeline.rent.replay.traces import Trace
from tests.paths import REPOSITORY
from tests.support.jobs import tiny_dict

SPOT = str(Path(__file__).with_name("spot.json"))
GIVEN = Given(
    step_seconds=20.0,
    boot_seconds=50.0,
    restore_seconds=10.0,
    stall_seconds=0.5,
    write_seconds=8.0,
    price=0.2,
    on_demand_price=0.4,
)


def write_job(folder: Path, **changes: Any) -> str:
    """Write the tiny job as `demo`, with its store below `folder`; return the job's path."""
    job = tiny_dict(**{"name": "demo", "store": str(folder / "store"), **changes})
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return str(path)


def test_it_prints_times_dollars_and_badput_for_each_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_replay(write_job(tmp_path), [], traces=[SPOT, SPOT], given=GIVEN)
    text = capsys.readouterr().out
    assert "demo: 30 steps, 0.3 h of training" in text
    assert text.count("spot: 0.0 days recorded") == 2
    for words in (
        "p10           p50           p90",
        "done after",
        "waited, unpaid",
        "dollars",
        "on demand, never lost: done after 0.3 h, $0.12",
        "recompute",
        "--step-seconds, scaled by tokens from pretrain",
        "assumed: no warning",
    ):
        assert words in text


def test_json_has_every_number_with_its_origin_and_shares_that_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_replay(write_job(tmp_path), [], traces=[SPOT], given=GIVEN, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["numbers"]["boot"] == {"value": 50.0, "origin": "--boot-seconds"}
    assert said["numbers"]["steps"]["sft"]["value"] == pytest.approx(60.0)
    (trace,) = said["traces"]
    assert (trace["trace"], trace["starts"], trace["preemptions"]) == ("spot", 60, 4)
    assert trace["goodput"] + sum(trace["badput"].values()) == pytest.approx(1)
    found = trace["percentiles"]
    assert found["elapsed"]["p10"] < found["elapsed"]["p90"]
    assert found["dollars"]["p50"] == pytest.approx(0.2 * found["paid"]["p50"] / 3600)
    on_demand = said["on_demand"]
    assert on_demand["elapsed"] < found["elapsed"]["p10"]
    assert on_demand["dollars"] == pytest.approx(0.4 * on_demand["elapsed"] / 3600)


def test_without_a_price_it_says_how_to_give_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_replay(write_job(tmp_path), [], traces=[SPOT], given=Given(step_seconds=20.0))
    text = capsys.readouterr().out
    assert "unknown: set `prices` in the job, or pass --price and --on-demand-price" in text
    assert "dollars" not in text


def test_a_plot_is_written(tmp_path: Path) -> None:
    png = tmp_path / "replay.png"
    show_replay(write_job(tmp_path), [], traces=[SPOT, SPOT], given=GIVEN, png=str(png))
    assert png.read_bytes().startswith(b"\x89PNG")


def test_starts_that_never_finish_are_counted_and_no_number_hides_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = Given(step_seconds=20.0, boot_seconds=1300.0)
    job = write_job(tmp_path, pretrain__steps=500)
    show_replay(job, [], traces=[SPOT], given=given, as_json=True)
    (trace,) = json.loads(capsys.readouterr().out)["traces"]
    assert trace["stopped"] == {"no machine lasts long enough": 60}
    assert trace["percentiles"]["elapsed"] == {"p10": None, "p50": None, "p90": None}
    show_replay(job, [], traces=[SPOT], given=given)
    text = capsys.readouterr().out
    assert "60 starts never finish: no machine lasts long enough" in text
    assert "never         never         never" in text


def test_where_machines_live_for_hours_nearly_all_time_paid_for_is_kept_work() -> None:
    # As in the recorded traces: a machine lives for 7 hours, then there is none for half an hour.
    market = Trace("invented", 600.0, (*[True] * 42, *[False] * 3))
    with tempfile.TemporaryDirectory() as empty:  # without runs, nothing was measured
        job = load_job(REPOSITORY / "jobs/pion-small.yaml", [f"store={empty}"])
        numbers = job_numbers(job, Given(step_seconds=4.3, price=0.2, on_demand_price=0.4))
    summary = summarise(market, sweep(timed_run(job, numbers), market), numbers.spot)
    assert not summary.stopped
    assert summary.goodput >= 0.97


def test_percentiles_are_values_that_some_start_had() -> None:
    trace = Trace("invented", 1.0, (True, False))
    outcomes = {tick: Outcome(kept=100.0 * (tick + 1)) for tick in range(10)}
    outcomes[9].stopped = "lost"
    summary = summarise(trace, outcomes, Number(3.6, "given"))
    assert summary.percentiles["elapsed"] == (100.0, 500.0, 900.0)
    assert summary.percentiles["dollars"] == pytest.approx((0.1, 0.5, 0.9))
    outcomes[8].stopped = "lost"
    assert summarise(trace, outcomes, None).percentiles["elapsed"] == (100.0, 500.0, None)


def test_traces_must_be_named_and_be_traces(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--trace FILE"):
        show_replay(write_job(tmp_path), [], traces=[], given=GIVEN)
    with pytest.raises(BadInput, match="can't read the trace"):
        show_replay(write_job(tmp_path), [], traces=[SPOT, str(tmp_path / "no.json")], given=GIVEN)


def test_a_plot_s_folder_must_be_there_before_anything_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInput, match="there is no folder"):
        show_replay(
            write_job(tmp_path), [], traces=[SPOT], given=GIVEN, png=str(tmp_path / "no" / "a.png")
        )
    with pytest.raises(BadInput, match=r"is a folder; name a file in it: --png .*replay\.png"):
        show_replay(write_job(tmp_path), [], traces=[SPOT], given=GIVEN, png=str(tmp_path))
    assert capsys.readouterr().out == ""


def test_a_plot_that_can_t_be_written_costs_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = str(tmp_path / f"{300 * 'a'}.png")
    with pytest.raises(BadInput, match="can't be written: File name too long"):
        show_replay(write_job(tmp_path), [], traces=[SPOT], given=GIVEN, png=png)
    assert "of all paid time" in capsys.readouterr().out


def test_an_absurd_amount_is_refused() -> None:
    with pytest.raises(BadInput, match="--step-seconds is 1e\\+308; it must be at most"):
        Given(step_seconds=1e308).check()
