"""`pion status A B --compare`: runs side by side, from their stores alone."""

import json

import pytest

from pipeline.state.stores import FileStore
from tests.support.rented_run import RentedRun


def train(store, name, *, lr, steps=60):
    run = RentedRun(FileStore(store), name, lr=lr)
    run.rent()
    run.train(steps)
    run.save()


@pytest.fixture
def two(here):
    train(here / "runs", "slow", lr=1e-4)
    train(here / "runs", "fast", lr=2e-4, steps=90)
    return here


def row(out, name):
    """Return the words of the line that begins with `name`, after the name."""
    [line] = [line for line in out.splitlines() if line.strip().startswith(name)]
    return line.strip().removeprefix(name).split()


def test_two_runs_are_compared_by_settings_data_loss_and_dollars(two, pion):
    code, out, _ = pion("status", "slow", "fast", "--compare")
    assert code == 0
    assert out.split()[:2] == ["slow", "fast"]
    assert row(out, "pretrain.lr") == ["0.0001", "0.0002"]
    assert row(out, "digest") == ["d", "d"]
    losses = row(out, "pretrain, training")
    assert (losses[3], losses[7]) == ("60", "90")
    assert row(out, "pretrain, held out")[3] == "60"
    assert [word[0] for word in row(out, "dollars")] == ["$", "$"]
    assert "pretrain.steps" not in out, "only what differs is shown"


def test_the_comparison_as_json_has_the_same_numbers(two, pion):
    code, out, _ = pion("status", "slow", "fast", "--compare", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["settings"]["pretrain.lr"] == [1e-4, 2e-4]
    assert [one["run"] for one in found["runs"]] == ["slow", "fast"]
    assert [one["losses"]["pretrain"]["loss"]["step"] for one in found["runs"]] == [60, 90]
    assert found["runs"][0]["dollars"] < found["runs"][1]["dollars"]


def test_runs_of_the_same_name_are_told_apart_by_their_stores(here, pion, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no name is broken into lines
    for store in ("one", "two"):
        train(here / store, "demo", lr=1e-4)
    _, out, _ = pion("status", str(here / "one/demo"), str(here / "two/demo"), "--compare")
    assert "none" in out.split("settings that differ")[1].split("data")[0]
    assert "one/demo" in "".join(out.split())


def test_a_run_without_steps_and_with_an_unknown_job_is_compared_too(two, pion):
    run = RentedRun(FileStore(two / "runs"), "empty")
    run.state.store.write(run.state.key("HEAD.json"), b'{"format": 4}')
    code, out, _ = pion("status", "slow", "empty", "--compare")
    assert code == 0
    assert "not known: the job of a run can't be read" in out
    assert "not prepared" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--compare needs two or more runs"),
        (["slow"], "--compare needs two or more runs"),
        (["slow", "gone"], "no run 'gone'"),
        (["slow", "gone"], "fast, slow"),
        (["slow", "fast", "--web"], "Leave out --compare"),  # the page does so by itself
    ],
)
def test_what_can_not_be_compared_is_refused(two, pion, arguments, words):
    code, out, err = pion("status", *arguments, "--compare")
    assert (code, out) == (2, "")
    assert words in err
