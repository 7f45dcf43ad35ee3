"""`pion prove` really kills runs, and finds the same weights or says where they differ."""

import dataclasses
import io
import json
import random
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.machine.kill_points import POINTS
from pipeline.prove.attempt import Attempt, Instant, Place, Watch, attempt
from pipeline.prove.instants import (
    FAILURES_BEFORE_COMMIT,
    MAX_STEPS,
    Instants,
    cut_overrides,
    cut_steps,
)
from pipeline.prove.proof import ProofOptions, prove, verdict_lines
from pipeline.state.head import REFERENCE, Head, StageRecord
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, open_store
from pipeline.workers.reaper import session_processes
from tests.paths import JOBS
from tests.support.forked import ForkedRun
from tests.support.jobs import tiny_dict, tiny_job, write_tiny_data
from tests.support.preference_runs import prefer_job
from tests.support.published_models import load_shipped

SHORT = {
    "pretrain__steps": 9,
    "sft__steps": 6,
    "hardware__workers": 0,
    "hardware__threads": 1,
}


@pytest.fixture
def here(here, monkeypatch):
    """The working directory, with its own cache inside."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    return here


@pytest.fixture
def in_forks(monkeypatch):
    """Let each attempt run in a fork: importing what it needs takes longer than its steps."""

    def start(command, *, env, stdout, **_):
        assert command[:3] == [sys.executable, "-m", "pipeline.cli"]
        return ForkedRun(command[3:], Path.cwd(), env, output=stdout)

    attempting = sys.modules[attempt.__module__]
    forking = SimpleNamespace(**vars(subprocess) | {"Popen": start})
    monkeypatch.setattr(attempting, "subprocess", forking)


def write_job(folder, **changes):
    write_tiny_data(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_dict(**SHORT, **changes)))
    return "tiny.yaml"


# ---------------------------------------------------------------- whole proofs


@pytest.fixture(params=["a folder", pytest.param("S3", marks=pytest.mark.soak)])
def store(request, here):
    """On S3, kills can also land in uploads, and can take this machine's copies with them."""
    in_bucket = request.getfixturevalue("s3_store") if request.param == "S3" else ""
    return in_bucket or f"file://{here}/runs"


@pytest.mark.usefixtures("in_forks")
@pytest.mark.parametrize("kills", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_a_run_killed_several_times_ends_like_the_unbroken_one(here, store, capsys, kills):
    options = ["--kills", str(kills), "--seed", "3", "--json", "proof.json", "--store", store]
    code = main(["prove", write_job(here), *options])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "EQUAL" in out
    result = json.loads((here / "proof.json").read_text())
    assert result["equal"]
    assert result["store"] == store
    assert result["difference"] is None
    assert len(result["kills"]) == sum(r["kills"] for r in result["rounds"]) == kills
    assert {kill["at"] for kill in result["kills"]} & set(POINTS)
    assert result["unbroken"]["stages"].keys() == {"pretrain", "sft"}
    for this in result["rounds"]:
        assert this["stages"] == result["unbroken"]["stages"]
    # Nothing stays behind in the store or on this machine.
    assert open_store(store).list() == []
    assert not (here / "runs").exists()
    assert list((here / "cache" / "pion").glob("prove-*")) == []


@pytest.mark.usefixtures("in_forks")
def test_a_run_that_trains_on_other_data_is_found_out_and_kept(here):
    job = write_job(here, sft=None)
    said = []

    def say(line):
        said.append(line)
        if line.startswith("unbroken run"):
            text = here / "text" / "all.txt"
            text.write_text("\n\n".join(reversed(text.read_text().split("\n\n"))))

    options = ProofOptions(kills=1, seed=0, json_path="proof.json")
    assert prove(job, [], options, say) == 1
    result = json.loads((here / "proof.json").read_text())
    assert not result["equal"]
    assert "pretrain differs from step 1: the loss is " in result["difference"]
    assert "blocks.0.attention.q_proj.weight" in result["difference"]
    assert "DIFFERENT: " + result["difference"] in said
    kept = sorted(path.name for path in (here / "runs").iterdir())
    assert kept == ["_data", f"{result['runs']}-1", f"{result['runs']}-unbroken"]


@pytest.mark.usefixtures("in_forks")
def test_a_job_that_fails_by_itself_is_no_proof(here, capsys):
    job = write_job(here)
    code = main(["prove", job, "data.sources.0.path=typo", "--kills", "1"])
    err = capsys.readouterr().err
    assert code == 2
    assert "typo" in err
    assert not (here / "tiny-prove.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.yaml", "--kills", "0"], "--kills 0"),
        (["tiny.yaml", "--json", "nowhere/proof.json"], "there is no folder nowhere"),
        (["tniy.yaml"], "did you mean tiny.yaml?"),
        (["tiny.yaml", "--store", "ftp://x"], "unknown scheme 'ftp'"),
    ],
)
def test_what_can_not_be_proved_is_bad_input(here, capsys, arguments, message):
    write_job(here)
    assert main(["prove", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


# ---------------------------------------------------------------- one kill


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_kill_at_the_save_mark_lands_inside_a_save_and_leaves_no_process(here, forked, request):
    """Only a process that was started, and not forked, is found by its environment."""
    if forked:
        request.getfixturevalue("in_forks")
    command = [sys.executable, "-m", "pipeline.cli", "run", write_job(here, sft=None)]
    command += ["checkpoint.every_steps=3", "log.every=1"]
    with Place() as place:
        # The third of the five files of the first checkpoint is not written yet.
        done = attempt(command, place, "tiny", Instant("save", arrival=3, machine=True))
        assert (done.killed, done.at, done.during) == (True, "save", "pretrain"), done.last_lines
        (folder,) = (here / "runs/tiny/checkpoints/pretrain").iterdir()
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert names == {"model.safetensors", "optimizer.safetensors"}
        head = RunState(FileStore(here / "runs"), "tiny").read()
        assert head.checkpoints == ()
        assert session_processes(str(place.folder)) == []


LOG = """prepare: to do
prepare: done
pretrain: starts
pretrain step 1,003/2,000
pretrain step 1,003: saved
prefer: starts
prefer: reference pass 3 rows
"""


@pytest.mark.parametrize(
    ("instant", "line"),
    [
        (Instant("shard", arrival=1000), 2),  # no shards are written once the data is there
        (Instant("reference", arrival=1000), 6),  # an earlier attempt has written some chunks
        (Instant(lines=4), 4),
        (Instant(lines=1, after_commit=True), 6),
        (Instant("save"), None),
        (Instant(delay=1e9), None),
        (None, None),
    ],
)
def test_a_kill_comes_after_its_lines_or_once_its_mark_can_not_be_come_to_any_more(
    tmp_path, instant, line
):
    log, halted = io.BytesIO(), tmp_path / "halted"
    watch = Watch(log, 0.0, instant)
    due = []
    for text in LOG.splitlines(keepends=True):
        at = log.tell()
        log.write(text.encode())
        log.seek(at)
        due.append(watch.due(halted))
    assert due.index(True) + 1 == line if line else not any(due)
    assert watch.steps == {"pretrain": 1003}
    assert watch.during == "reference"
    halted.touch()
    assert watch.due(halted) == (instant is not None and (line is not None or bool(instant.point)))


@pytest.mark.soak
@pytest.mark.usefixtures("in_forks")
def test_a_kill_in_the_pass_of_a_reference_says_so(here):
    command = [sys.executable, "-m", "pipeline.cli", "run", str(prefer_job(here))]
    with Place() as place:
        done = attempt(command, place, "tiny", Instant("reference", arrival=2))
        assert (done.killed, done.at, done.during) == (True, "reference", "reference")
        # Most of it is done by now, so this arrival never comes.
        later = attempt(command, place, "tiny", Instant("reference", arrival=1000))
    assert (later.killed, later.at, later.during) == (True, None, "prefer"), later.last_lines


# ---------------------------------------------------------------- choosing instants

WHOLE = Attempt(False, 0, None, "evaluate", {}, [0.1 * n for n in range(60)], [3.0, 3.1], 9.0, "")


def head_after(failures, *stages):
    """Return HEAD of a run that did `stages` and was then killed so often without a commit."""
    head = Head()
    for stage in stages:
        head = head.with_stage(stage, StageRecord("digest", 0.0))
    for _ in range(failures):
        owner = dataclasses.replace(Owner.me(), session=uuid.uuid4().hex)
        head = head.claimed(owner, 0.0).claimed(owner, 0.0)  # the driver's, and the trainer's
    return head


def draws(head, number, *, remote=True):
    stages = ["pretrain", "sft", "prefer", "reinforce"]
    instants = Instants(random.Random(0), WHOLE, stages, remote=remote, reference=True)
    return [instants.next(head, saves_left=5) for _ in range(number)]


def test_half_of_the_kills_are_at_marks_and_every_mark_comes_up_equally_often():
    points = [instant.point for instant in draws(Head(), 160) if instant is not None]
    assert points.count(None) == 80
    assert {points.count(point) for point in POINTS} == {10}


def test_the_first_kills_of_a_proof_land_in_training():
    at_mark, at_random = draws(Head(), 2)
    assert at_mark.point == "save"
    assert at_random.after_commit


@pytest.mark.parametrize(("during", "words"), [("pretrain", "1 of"), ("prepare", "none of")])
def test_the_verdict_says_how_many_kills_hit_training(during, words):
    kill = {"at": None, "during": during, "died": "driver", "lost": 0, "first_step_seconds": None}
    trained = {"steps": 9, "model_sha256": "0" * 64, "rows_sha256": "0" * 64}
    lines = verdict_lines(
        {
            "kills": [kill, kill | {"during": "start-up"}],
            "rounds": [{}],
            "seconds": 9.0,
            "seconds_per_kill": 4.5,
            "unbroken": {"stages": {"pretrain": trained}},
            "equal": True,
        }
    )
    assert f"2 kills in 1 run, {words} them in training" in "\n".join(lines)


def test_no_kill_waits_for_a_mark_that_will_not_come():
    bound = head_after(0, "prepare", "reinforce").with_data({REFERENCE: "_data/key/folder"})
    points = {i.point for i in draws(bound, 100, remote=False) if i is not None}
    assert points == {None, "save", "commit", "boundary"}


def test_only_a_job_that_computes_a_reference_is_killed_there():
    instants = Instants(random.Random(0), WHOLE, ["pretrain", "sft"], remote=True)
    points = {i.point for _ in range(100) if (i := instants.next(Head(), 5)) is not None}
    assert points == {None, *POINTS} - {"reference", "rollout", "reward"}


def test_kills_in_the_pass_of_a_reference_land_before_and_after_everything_it_writes():
    found = {i.arrival for i in draws(Head(), 2000) if i is not None and i.point == "reference"}
    assert found == set(range(1, 7))


def test_after_kills_without_a_commit_the_next_one_waits_for_a_commit():
    before = draws(head_after(FAILURES_BEFORE_COMMIT - 1, "prepare"), 50)[2:]
    assert not any(instant is not None and instant.after_commit for instant in before)
    waiting = draws(head_after(FAILURES_BEFORE_COMMIT, "prepare"), 50)
    assert all(instant is not None and instant.after_commit for instant in waiting)


def test_a_run_that_has_trained_everything_is_soon_let_finish():
    assert None in draws(head_after(0, "prepare", "pretrain", "sft", "prefer", "reinforce"), 3)


# ---------------------------------------------------------------- cutting the job


@given(st.integers(2, 500_000), st.integers(2, 500_000), st.floats(0.0, 0.99))
@settings(max_examples=100, deadline=None)
def test_a_cut_job_has_at_most_sixty_steps_and_still_fits_together(pretrain, sft, warmup):
    job = tiny_job(
        pretrain__steps=pretrain,
        pretrain__warmup_steps=int(pretrain * warmup),
        sft__steps=sft,
        sft__warmup_steps=int(sft * warmup),
    )
    steps = cut_steps(job)
    assert sum(steps.values()) <= MAX_STEPS
    assert min(steps.values()) >= min(pretrain, sft, 6)
    changes = dict(override.split("=", 1) for override in cut_overrides(job, "x", "runs"))
    for stage in ("pretrain", "sft"):
        assert int(changes[f"{stage}.warmup_steps"]) < steps[stage]


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_that_comes_with_pion_can_be_cut(path):
    overrides = cut_overrides(load_shipped(path), "proof", "s3://bucket/proofs")
    job = load_shipped(path, overrides)
    assert (job.name, job.store, job.publish) == ("proof", "s3://bucket/proofs", None)
    assert sum(job.section(stage).steps for stage in job.train_stages) <= MAX_STEPS
