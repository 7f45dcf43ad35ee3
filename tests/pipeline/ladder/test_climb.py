"""`pion ladder` as a whole, with runs that take no time: its states are in the store alone."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pion.errors import BadInput, Interrupted, PionError, Stopped
from pipeline.ladder.cap import Cap
from pipeline.ladder.command import grid_of, run_ladder
from pipeline.ladder.record import ladder_file
from pipeline.ladder.runs import Runs
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from tests.pipeline.ladder.fake_runs import LAW, FakeRuns, Killed, write_job
from tests.support.published_models import write_published

pytestmark = pytest.mark.usefixtures("here")

# By the exit code of a run: that of the ladder. 4: a person has stopped the run.
ENDS = [(2, 2), (3, 3), (4, 4), (74, 74), (75, 75), (130, 75), (-9, 1)]
SMALL = {"widths": "0.25,0.5,1", "tokens": "0.25,0.5,1"}
HELD_OUT = "1.5x1,1.5x2"


def climb(job, runs, *overrides, hours=None, dollars=None, as_json=False, **options):
    grid = grid_of(**{"hold_out": None, **SMALL, **options})
    runs = Runs("ladder", job, overrides, runs, as_json=as_json)
    return run_ladder(runs, grid, Cap(hours, dollars))


def record_of(folder):
    record, _ = ladder_file(FileStore(folder / "runs"), "tiny").read()
    assert record is not None
    return record


@dataclass(frozen=True)
class Finished:
    """A ladder of nine runs that nobody disturbed: its folder, the runs that it started, and what
    it printed as JSON."""

    folder: Path
    started: list[str]
    found: dict[str, Any]

    def copy_to(self, folder):
        """Copy its store to another folder, and return the path of the job there."""
        shutil.copytree(self.folder / "runs", folder / "runs")
        return write_job(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, runs, said = tmp_path_factory.mktemp("finished"), FakeRuns(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        assert climb(write_job(folder), runs, as_json=True) == 0
    return Finished(folder, runs.started, json.loads(said.getvalue()))


def test_the_runs_are_done_from_the_cheapest_and_fitted(finished):
    found = finished.found
    flops = [run["flops"] for run in found["runs"]]
    assert flops == sorted(flops)
    assert finished.started == [run["run"] for run in found["runs"]]
    assert len(finished.started) == 9
    for run in found["runs"]:
        law = LAW.loss(run["macs_per_token"], run["tokens"])
        assert run["bits_per_byte"] == pytest.approx(law)
    assert found["fit"]["law"]["E"] == pytest.approx(LAW.E, rel=0.2)
    assert Path(found["page"]).read_text().count("<circle") == 9


def test_a_finished_ladder_does_nothing_again_and_keeps_its_fit(tmp_path, finished):
    again = FakeRuns()
    assert climb(finished.copy_to(tmp_path), again) == 0
    assert not again.started
    assert record_of(tmp_path).fit == record_of(finished.folder).fit


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The record of a ladder of eleven runs that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder):
        climb(write_job(folder), FakeRuns(), hold_out=HELD_OUT)
    return record_of(folder)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(1, "before", marks=pytest.mark.soak),
        pytest.param(1, "after", marks=pytest.mark.soak),
        pytest.param(9, "before", marks=pytest.mark.soak),
        (9, "after"),
        pytest.param(11, "before", marks=pytest.mark.soak),
        pytest.param(11, "after", marks=pytest.mark.soak),
    ],
)
def test_a_ladder_that_is_killed_anywhere_ends_with_the_same_fit_and_predictions(
    tmp_path, whole, number, moment
):
    def kill(at, when):
        if (at, when) == (number, moment):
            raise Killed

    job = write_job(tmp_path)
    with pytest.raises(Killed):
        climb(job, FakeRuns(meddle=kill), hold_out=HELD_OUT)
    rest = FakeRuns()
    assert climb(job, rest, hold_out=HELD_OUT) == 0
    assert len(rest.started) == 11 - number + (moment == "before")
    broken = record_of(tmp_path)
    assert broken.fit == whole.fit
    assert [p.bits_per_byte for p in broken.predictions.values()] == [
        p.bits_per_byte for p in whole.predictions.values()
    ]


def test_held_out_runs_are_predicted_before_they_start(tmp_path, capsys):
    job, predicted = write_job(tmp_path), []

    def look(number, moment):
        if number > 7 and moment == "before":
            predicted.append(dict(record_of(tmp_path).predictions))

    runs = FakeRuns(meddle=look)
    climb(job, runs, hold_out="2", as_json=True)
    found = json.loads(capsys.readouterr().out)
    held = [run for run in found["runs"] if run["held_out"]]
    assert [run["run"] for run in held] == runs.started[7:]
    assert [set(known) for known in predicted] == [set(runs.started[7:])] * 2
    assert len(found["fit"]["points"]) == 7
    for run in held:
        assert abs(run["error"]) < 0.03
        assert run["predicted"]["low"] < run["predicted"]["bits_per_byte"]


def test_a_run_that_diverges_is_left_out_of_the_fit_until_a_person_removes_it(tmp_path, capsys):
    job, runs = write_job(tmp_path), FakeRuns(diverge=lambda name: "64x2-640" in name)
    assert climb(job, runs) == 0
    out = capsys.readouterr().out
    (name, why), *more = record_of(tmp_path).failed.items()
    assert not more
    assert why == "diverged: step 3 gave a loss of nan, after it was rolled back once"
    assert f"{name} {why}; the fit leaves it out" in out
    assert len(record_of(tmp_path).fit.points) == 8
    again = FakeRuns()
    climb(job, again)
    assert not again.started, "it is not tried again"
    shutil.rmtree(tmp_path / "runs" / name)  # as a person removes it
    assert climb(job, again) == 0
    assert again.started == [name]
    assert not record_of(tmp_path).failed
    assert len(record_of(tmp_path).fit.points) == 9


def test_a_run_whose_loss_is_no_number_is_left_out_also_after_a_kill(tmp_path, finished):
    job = finished.copy_to(tmp_path)
    head = tmp_path / "runs" / finished.started[3] / "HEAD.json"
    head.write_text(re.sub(r'"bits_per_byte": [\d.]+', '"bits_per_byte": null', head.read_text()))
    assert climb(job, FakeRuns()) == 0
    assert len(record_of(tmp_path).fit.points) == 8


def test_if_too_many_runs_diverge_there_is_no_fit_and_it_says_what_is_missing(tmp_path, capsys):
    job, runs = write_job(tmp_path), FakeRuns(diverge=lambda name: "64x2" in name)
    assert climb(job, runs, hold_out="1.5x1") == 1
    out = capsys.readouterr().out
    assert "no fit: too few results to fit" in out
    assert "1 more size" in out
    assert not any("96x3" in name for name in runs.started), "nothing predicts the held-out run"


def test_a_run_that_fails_without_having_diverged_ends_the_ladder(tmp_path):
    job = write_job(tmp_path)
    with pytest.raises(PionError, match="not because it diverged") as failed:
        climb(job, lambda arguments: 1)  # type: ignore[arg-type]
    assert failed.value.exit_code == 1
    assert not record_of(tmp_path).failed


@pytest.mark.parametrize(("code", "kind"), ENDS)
def test_any_other_end_of_a_run_is_the_end_of_the_ladder(tmp_path, code, kind):
    with pytest.raises(PionError, match=r"[Rr]un the same command again") as ended:
        climb(write_job(tmp_path), lambda arguments: code)  # type: ignore[arg-type]
    assert ended.value.exit_code == kind


@pytest.mark.parametrize(("launch", "kind"), [("a" * 32, Interrupted), ("", StoreError)])
def test_an_outage_between_two_runs_is_an_interruption_on_a_rented_machine(
    tmp_path, monkeypatch, launch, kind
):
    def down(*_):
        raise StoreError("read", "HEAD.json", "no route to host", outage=True)

    def fail(number, moment):
        if (number, moment) == (2, "after"):
            monkeypatch.setattr("pipeline.ladder.look.result_in", down)

    monkeypatch.setenv("PION_LAUNCH_ID", launch)
    with pytest.raises(kind, match="no route to host"):
        climb(write_job(tmp_path), FakeRuns(meddle=fail))


# ---------------------------------------------------------------- the cap


def test_it_stops_before_a_run_that_would_exceed_the_cap_and_a_larger_cap_continues(tmp_path):
    job, runs = write_job(tmp_path), FakeRuns()
    with pytest.raises(Stopped, match="would exceed the cap over all runs") as stopped:
        climb(job, runs, hours=0.06)
    assert stopped.value.exit_code == 4
    begun = len(runs.started)
    assert 0 < begun < 9
    spent = sum(
        head.spent.hours
        for name in runs.started
        if (head := RunState(FileStore(tmp_path / "runs"), name).read())
    )
    assert spent <= 0.06
    with pytest.raises(Stopped, match="would exceed the cap"):
        climb(job, runs)  # the store remembers the cap
    assert len(runs.started) == begun
    assert climb(job, runs, hours=10) == 0
    assert len(runs.started) == 9


def test_a_cap_in_dollars_needs_a_price_and_counts_all_runs(tmp_path):
    job, runs = write_job(tmp_path), FakeRuns()
    with pytest.raises(BadInput, match="the price of this machine is not known"):
        climb(job, runs, dollars=1)
    with pytest.raises(Stopped, match=r"of \$0.1"):
        climb(job, runs, "budget.dollars_per_hour=2", dollars=0.1)
    assert 0 < len(runs.started) < 9


def test_a_cap_that_buys_less_than_the_smallest_run_is_one_message(tmp_path):
    job, runs = write_job(tmp_path), FakeRuns()
    with pytest.raises(Stopped, match="buys less than the smallest run of the ladder, tiny-ladder"):
        climb(job, runs, hours=0.001)
    assert len(runs.started) == 1
    with pytest.raises(Stopped, match="the cap over all runs is reached"):
        climb(job, runs)
    assert len(runs.started) == 1


# ---------------------------------------------------------------- bad input


def test_another_grid_under_the_same_name_is_refused_with_the_difference(tmp_path, finished):
    job = finished.copy_to(tmp_path)
    with pytest.raises(BadInput) as refused:
        climb(job, FakeRuns(), "data.held_out=0.3", "pretrain.lr=2e-2", tokens="0.25,0.5,2")
    said = str(refused.value)
    assert "pretrain.lr: 0.01 → 0.02" in said
    assert "data.held_out: 0.2 → 0.3" in said
    assert "no longer: tiny-ladder-16x1-2.56K" in said
    assert "new: tiny-ladder-16x1-5.12K" in said
    assert "pion ladder JOB name=NAME" in said


def test_a_ladder_with_too_few_points_is_refused_before_it_starts(tmp_path):
    runs = FakeRuns()
    with pytest.raises(BadInput, match="lacks 3 more runs, 1 more size, 1 more length") as refused:
        climb(write_job(tmp_path), runs, widths="0.5,1", tokens="0.5,1")
    assert "Nothing was started" in str(refused.value)
    assert not runs.started


def test_runs_on_different_data_are_not_fitted_together(tmp_path):
    job = write_job(tmp_path)

    def kill(number, moment):
        if (number, moment) == (2, "after"):
            raise Killed

    with pytest.raises(Killed):
        climb(job, FakeRuns(meddle=kill))
    with pytest.raises(BadInput, match="trained on other data than the other 7") as refused:
        climb(job, FakeRuns(data="ef" * 32))
    assert "pion rm tiny-ladder-16x1-" in str(refused.value)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("widths", "0.25,100", "a width of 100"),
        ("widths", "0.25,0.26,1", "would be the same"),
        ("tokens", "0", "tokens of 0"),
        ("tokens", ",".join(f"{n}e-2" for n in range(1, 30)), "more than the 64"),
        ("hold_out", "9", "some must be left"),
    ],
)
def test_a_wrong_grid_is_one_message(tmp_path, option, value, says):
    with pytest.raises(BadInput, match=says):
        climb(write_job(tmp_path), FakeRuns(), **{option: value})


def test_a_job_that_does_not_pretrain_is_refused(tmp_path):
    model = write_published(tmp_path / "base", "SmolLM2-135M")
    job = write_job(tmp_path, model={"from": str(model)}, tokenizer=None)
    with pytest.raises(BadInput, match="starts from a trained model"):
        climb(job, FakeRuns())


def test_a_damaged_record_says_what_to_do(tmp_path, finished):
    job = finished.copy_to(tmp_path)
    (tmp_path / "runs" / "_ladders" / "tiny.json").write_text("{")
    with pytest.raises(BadInput, match=r"Delete this file\. The runs of the ladder keep"):
        climb(job, FakeRuns())
