"""`pion try` as a whole, with runs that take no time: its states are in the store alone."""

from __future__ import annotations

import contextlib
import io
import json
import math
from functools import partial

import pytest

from pion.errors import BadInput, Interrupted, PionError, Stopped
from pipeline.search.search import Search
from pipeline.state.stores import StoreError
from tests.pipeline.search import fake_runs
from tests.pipeline.search.fake_runs import ROWS, FakeRuns, Killed, write_job

pytestmark = pytest.mark.usefixtures("here")

VARY = ("pretrain.lr=1e-3,2e-3,4e-3,8e-3",)
STEPS = 40
search = partial(fake_runs.search, varied=VARY)


def best_at_2e3(job, step):
    """Return a loss that is lowest for a rate of 2e-3, with a noise of each seed and run."""
    rate = job.section("pretrain").lr
    noise = 0.001 * ((job.seed * 7 + round(rate * 1e4) * 3 + step) % 5)
    return 3.0 + 0.1 * abs(math.log2(rate / 2e-3)) + 0.05 * (job.seed % 3) + noise + 1.0 / step


def job_in(folder):
    folder.mkdir(exist_ok=True)
    return write_job(folder, pretrain__steps=STEPS, pretrain__warmup_steps=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return what a search that nobody disturbed has printed as JSON, and its folder."""
    folder, printed = tmp_path_factory.mktemp("finished"), io.StringIO()
    job, runs = job_in(folder), FakeRuns(loss=best_at_2e3)
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        assert search(job, runs, as_json=True) == 0
    assert len(runs.started) == 12 + 6
    return json.loads(printed.getvalue()), folder


def test_the_best_setting_is_found_with_two_fifths_of_the_steps(finished):
    result, _ = finished
    assert result["choice"] == "pretrain.lr=2e-3"
    assert result["steps"] <= 0.4 * result["grid_steps"]
    assert result["grid_steps"] == 4 * 3 * STEPS
    assert "pretrain.lr=2e-3 is better than" in result["verdict"]
    assert {run["seed"] for run in result["runs"]} == {42, 43, 44}
    winner = next(run for run in result["runs"] if run["setting"] == result["choice"])
    assert result["command"].endswith(f"seed=42 name={winner['run']}")


def test_a_finished_search_does_nothing_again_and_says_how_to_continue(finished, capsys):
    _, folder = finished
    runs = FakeRuns(loss=best_at_2e3)
    with contextlib.chdir(folder):
        search(str(folder / "tiny.yaml"), runs)
    assert not runs.started
    printed = capsys.readouterr().out
    assert "pretrain.lr=2e-3 is better than" in printed
    assert "to finish its run, from its checkpoint: pion run" in printed


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(1, 3, marks=pytest.mark.soak),
        pytest.param(7, 12, marks=pytest.mark.soak),
        (12, 13),
        pytest.param(17, 18, marks=pytest.mark.soak),
    ],
)
def test_a_search_that_is_killed_twice_makes_the_same_choice(
    tmp_path, first, second, finished, capsys
):
    job, done = job_in(tmp_path), 0
    for number in (first, second - first):

        def kill(at, number=number):
            if at == number:
                raise Killed

        runs = FakeRuns(loss=best_at_2e3, meddle=kill)
        with pytest.raises(Killed):
            search(job, runs, as_json=True)
        done += len(runs.started)
    rest = FakeRuns(loss=best_at_2e3)
    search(job, rest, as_json=True)
    broken = json.loads(capsys.readouterr().out)
    assert done + len(rest.started) == 18, "nothing is done twice"
    for key in ("choice", "step", "others", "verdict", "steps"):
        assert broken[key] == finished[0][key]


def test_a_setting_that_diverges_comes_last(tmp_path, capsys):
    runs = FakeRuns(loss=best_at_2e3, diverge=lambda name: "lr=2e-3" in name)
    search(job_in(tmp_path), runs)
    out = capsys.readouterr().out
    assert "2e-3 diverged" in out
    assert "diverged: step 3 gave a loss of nan" in out
    assert "pretrain.lr=1e-3 is" in out or "pretrain.lr=4e-3 is" in out


def test_data_that_change_between_two_candidates_end_the_search(tmp_path):
    """Before any run of the changed data is compared, and again with the same command."""

    def change(number):
        runs.content = "rows" if number < 4 else "other rows"

    job, runs = job_in(tmp_path), FakeRuns(loss=best_at_2e3)
    runs.meddle = change
    for _ in range(2):
        with pytest.raises(BadInput, match="learned from other data than") as refused:
            search(job, runs)
        assert f"pion rm file://{tmp_path}/runs/{runs.started[4]}" in str(refused.value)
        assert len(runs.started) == 5


def test_the_cap_over_all_runs_is_kept_in_the_store(tmp_path):
    job, runs = job_in(tmp_path), FakeRuns(loss=best_at_2e3)
    with pytest.raises(Stopped, match="cap over all runs"):
        search(job, runs, hours=0.05)
    begun = len(runs.started)
    assert 0 < begun < 18
    (record,) = (tmp_path / "runs" / "_ladders" / "tiny").glob("try-*.json")
    of_0_2_0 = {"stage": "pretrain", "settings": [], "seeds": [], "rounds": [], "choice": None}
    record.write_text(json.dumps(json.loads(record.read_text()) | of_0_2_0))
    with pytest.raises(Stopped, match="cap over all runs"):
        search(job, runs)
    assert len(runs.started) == begun
    assert search(job, runs, hours=100) == 0
    record.write_text("{")
    with pytest.raises(BadInput, match=r"Delete this file\. The runs keep"):
        search(job, runs)


# By the exit code of a run: that of the search. 4: a person has stopped the run.
ENDS = [(1, 1), (2, 2), (3, 3), (4, 4), (74, 74), (75, 75), (130, 75), (-9, 1)]


@pytest.mark.parametrize(("code", "kind"), ENDS)
def test_a_run_that_ends_without_a_measure_ends_the_search(tmp_path, code, kind):
    with pytest.raises(PionError, match=r"the same command again") as ended:
        search(job_in(tmp_path), lambda arguments: code)  # type: ignore[arg-type]
    assert ended.value.exit_code == kind


@pytest.mark.parametrize(("launch", "kind"), [("a" * 32, Interrupted), ("", StoreError)])
def test_an_outage_between_two_runs_is_an_interruption_on_a_rented_machine(
    tmp_path, monkeypatch, launch, kind
):
    def down(*_):
        raise StoreError("read", "HEAD.json", "no route to host", outage=True)

    def fail(number):
        if number == 2:
            monkeypatch.setattr(Search, "_held_out", down)

    monkeypatch.setenv("PION_LAUNCH_ID", launch)
    with pytest.raises(kind, match="no route to host"):
        search(job_in(tmp_path), FakeRuns(loss=best_at_2e3, meddle=fail))


@pytest.mark.parametrize("wrong", ROWS["wrong"], ids=lambda wrong: wrong["says"][:40])
def test_a_wrong_search_is_one_message_and_starts_nothing(tmp_path, wrong):
    sources = [{"kind": "text", "path": f"{name}.txt", "name": name} for name in ("web", "qa")]
    phases = [{"until": 10, "mix": {"web": 1}}, {"mix": {"web": 2, "qa": 1}}]
    options = {name: value for name, value in wrong.items() if name not in ("says", "phases")}
    mixed = {"pretrain__phases": phases, "data__sources": sources} if "phases" in wrong else {}
    job = write_job(tmp_path, pretrain__steps=20, pretrain__warmup_steps=1, **mixed)
    runs = FakeRuns()
    with pytest.raises(BadInput, match=wrong["says"]) as refused:
        search(job, runs, **options)
    assert "nothing was started" in str(refused.value).lower()
    assert not runs.started
