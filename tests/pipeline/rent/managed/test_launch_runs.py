"""`pion ladder --on` and `pion try --on`: what the machine is told, and what is not rented for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pion.errors import Stopped
from pipeline.cli import main
from pipeline.ladder.command import LadderOptions, run_ladder
from pipeline.rent.managed import launch_runs
from pipeline.rent.managed.names import rental_name
from pipeline.state.claim import claim_run
from pipeline.state.notes.stop_requests import ask_stop, pending_stop
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.ladder.fake_runs import FakeRuns
from tests.pipeline.rent.conftest import YAML, SkyHome
from tests.pipeline.rent.managed.conftest import tasks_of
from tests.pipeline.rent.managed.test_launch_until import BOOTED
from tests.support.jobs import tiny_dict
from tests.support.states import someone

JOB = "jobs/tiny.yaml"
GRID = ("--widths", "0.25,0.5,1", "--tokens", "0.25,0.5,1")
LADDER = ("ladder", JOB, *GRID)
TRY = ("try", JOB, "--vary", "pretrain.lr=1e-3,2e-3")


@pytest.fixture
def store(sky_home: SkyHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStore:
    """The store of a job file in the present folder, a checkout."""
    folder = tmp_path / "project"
    (folder / "jobs").mkdir(parents=True)
    store = FileStore(tmp_path / "runs")
    job = tiny_dict(store=str(store.folder), model__d_model=64)
    (folder / JOB).write_text(yaml.safe_dump(job))
    monkeypatch.chdir(folder)
    return store


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let every check pass, and collect the tasks. The window is closed at once."""
    monkeypatch.setattr(launch_runs, "require_checks", lambda order, **more: None)
    return tasks_of(launch_runs, monkeypatch)


def words_of(task: Any) -> list[str]:
    return shlex.split(task.envs["PION_COMMAND"])


def finish_ladder(store: FileStore) -> None:
    """Do the whole ladder at home."""
    options = LadderOptions(widths=GRID[1], tokens=GRID[3])
    assert run_ladder(JOB, [], options, FakeRuns()) == 0


def in_one_line(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------- what the machine is told


def test_the_machine_runs_the_same_ladder_with_the_same_cap(
    store: FileStore, sky_home: SkyHome, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    on = ("--on", str(sky_home.yaml(text=BOOTED)))
    more = ("--hold-out", "1", "--dollars", "2.5", "evaluate.final_rows=4", "name=mine")
    assert main([*LADDER, *on, *more]) == 130
    (task,) = submitted
    assert words_of(task) == [
        "ladder",
        "--widths=0.25,0.5,1",
        "--tokens=0.25,0.5,1",
        "--hold-out=1",
        "--dollars=2.5",
    ]
    assert task.envs["JOB"] == JOB
    assert shlex.split(task.envs["OVERRIDES"]) == ["evaluate.final_rows=4", "name=mine"]
    assert task.envs["PION_RUN"] == f"{store.folder}/mine-ladder"
    assert task.name == rental_name(store.url, "mine-ladder")
    out = capsys.readouterr().out
    assert "one rental for 9 runs" in out
    assert f"pion watch {store.url}/mine-ladder" in out
    assert "cap over all runs: $2.5" in out


def test_the_machine_runs_the_same_search(
    store: FileStore, sky_home: SkyHome, submitted: list[Any]
) -> None:
    on = ("--on", str(sky_home.yaml(text=BOOTED)))
    assert main([*TRY, *on, "--seeds", "2", "--hours", "3"]) == 130
    (task,) = submitted
    assert words_of(task) == [
        "try",
        "--vary",
        "pretrain.lr=1e-3,2e-3",
        "--seeds",
        "2",
        "--hours=3.0",
    ]
    assert "/tiny-try-" in task.envs["PION_RUN"]


@pytest.mark.parametrize("command", [LADDER, TRY])
def test_the_words_mean_the_same_there(
    store: FileStore,
    sky_home: SkyHome,
    submitted: list[Any],
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main([*command, "--on", str(sky_home.yaml(text=BOOTED)), "--hours", "3"])
    (task,) = submitted
    begun: list[Any] = []
    for name in ("command.run_ladder", "try_command.run_try"):
        monkeypatch.setattr(f"pipeline.ladder.{name}", lambda *given: begun.append(given) or 0)
    assert main([*words_of(task), task.envs["JOB"], *shlex.split(task.envs["OVERRIDES"])]) == 0
    ((job, overrides, options),) = begun
    assert (job, overrides, options.hours) == (JOB, [], 3.0)


def test_the_budget_of_the_job_is_the_cap_if_there_is_no_other(
    store: FileStore, sky_home: SkyHome, submitted: list[Any]
) -> None:
    on = ("--on", str(sky_home.yaml(text=BOOTED)))
    assert main([*LADDER, *on, "budget.hours=7"]) == 130
    assert words_of(submitted[0])[-1] == "--hours=7.0"
    options = LadderOptions(widths=GRID[1], tokens=GRID[3], hours=0.02)
    with pytest.raises(Stopped):  # it begins at home, with a cap that the store keeps
        run_ladder(JOB, [], options, FakeRuns())
    assert main([*LADDER, *on, "budget.hours=7"]) == 4


def test_a_dry_run_shows_the_task_and_writes_nothing(
    store: FileStore, sky_home: SkyHome, capsys: pytest.CaptureFixture[str]
) -> None:
    on = ("--on", str(sky_home.yaml(text=BOOTED)))
    assert main([*LADDER, *on, "--hours", "3", "--dry-run"]) == 0
    task = yaml.safe_load(capsys.readouterr().out)
    assert task["envs"]["PION_COMMAND"].startswith("ladder --widths=0.25,0.5,1")
    assert not store.folder.exists()


def test_a_request_to_stop_one_of_the_runs_is_cleared(
    store: FileStore, sky_home: SkyHome, submitted: list[Any]
) -> None:
    finish_ladder(store)
    name = next(name for name in store.folders() if "-ladder-" in name)
    run = RunState(store, name)
    ask_stop(run, "pion stop")
    claim = claim_run(run, someone())
    claim.drop_stages(["evaluate"])  # so it is not finished
    claim.release()
    assert main([*LADDER, "--on", str(sky_home.yaml(text=BOOTED)), "--hours", "3"]) == 130
    assert pending_stop(run) is None


# ---------------------------------------------------------------- what is not rented for


def refused(
    sky_home: SkyHome,
    capsys: pytest.CaptureFixture[str],
    *words: str,
    text: str = BOOTED,
    code: int = 2,
) -> str:
    on = str(sky_home.yaml(text=text))
    assert main([*words, "--on", on]) == code
    err = in_one_line(capsys.readouterr().err)
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", [LADDER, TRY])
def test_without_a_cap_nothing_is_rented(
    store: FileStore,
    sky_home: SkyHome,
    submitted: list[Any],
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
) -> None:
    said = refused(sky_home, capsys, *command)
    assert "say what they may cost together: --dollars D or --hours H. Nothing was rented" in said
    assert not submitted


CAPPED = (*LADDER, "--hours", "3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workdir: .\n" + YAML, "would do one run of the job, because its `run:` neither starts"),
        (BOOTED.replace("envs: {{", "envs: {{PION_UNTIL: prepare, "), "end after prepare"),
        (BOOTED + "num_nodes: 2\n", "has 2 nodes, and the runs of `pion ladder` are small"),
    ],
)
def test_a_file_that_does_not_suit_is_refused(
    store: FileStore,
    sky_home: SkyHome,
    submitted: list[Any],
    capsys: pytest.CaptureFixture[str],
    text: str,
    says: str,
) -> None:
    said = refused(sky_home, capsys, *CAPPED, text=text)
    assert says in said
    assert "Nothing was rented" in said
    assert not submitted


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--hours", "-1"), "--hours -1: give a number above 0"),
        (("--tokens", "0.5,1"), "1 more length"),
        (("--hold-out", "many"), "--hold-out many"),
        (("model.d_mode=3",), "d_mode"),
    ],
)
def test_a_ladder_that_would_fail_there_is_refused_here(
    store: FileStore,
    sky_home: SkyHome,
    submitted: list[Any],
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    says: str,
) -> None:
    assert says in refused(sky_home, capsys, *CAPPED, *more)
    assert not submitted
    assert not store.folder.exists()


def test_a_ladder_that_was_begun_with_other_settings_is_refused(
    store: FileStore, sky_home: SkyHome, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    finish_ladder(store)
    capsys.readouterr()
    said = refused(sky_home, capsys, *CAPPED, "pretrain.weight_decay=0.5")
    assert "was begun with other settings: pretrain.weight_decay" in said
    assert not submitted


def test_nothing_is_rented_for_a_finished_ladder_and_it_is_shown(
    store: FileStore, sky_home: SkyHome, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    finish_ladder(store)
    capsys.readouterr()
    on = ("--on", str(sky_home.yaml(text=BOOTED)))
    assert main([*CAPPED, *on, "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["runs"]) == 9
    assert "all runs are done, so nothing was rented" in err
    assert not submitted


def test_a_cap_that_is_reached_buys_nothing(
    store: FileStore, sky_home: SkyHome, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = LadderOptions(widths=GRID[1], tokens=GRID[3], hours=0.02)
    with pytest.raises(Stopped, match="the cap"):
        run_ladder(JOB, [], options, FakeRuns())
    said = refused(sky_home, capsys, *LADDER, code=4)
    assert "would exceed the cap over all runs: 47 s of 0.02 hours are spent" in said
    assert not submitted


def test_runs_that_somebody_does_are_not_rented_for(
    store: FileStore, sky_home: SkyHome, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    claim = claim_run(RunState(store, "tiny-ladder"), someone(host="pod-7", pid=77))
    claim.heartbeat.beat()
    said = refused(sky_home, capsys, *CAPPED)
    assert "tiny-ladder is being run by pid 77 on pod-7" in said
    assert f"pion stop {store.url}/tiny-ladder --wait. Nothing was rented" in said
    assert not submitted


def test_an_ordinary_run_of_that_name_is_not_taken(
    store: FileStore, sky_home: SkyHome, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    claim = claim_run(RunState(store, "tiny-ladder"), someone())
    claim.finish_stage("prepare", "d", {})
    claim.release()
    assert "is an ordinary run" in refused(sky_home, capsys, *CAPPED)
    assert not submitted


# The real checks of `pion launch`, on the largest run.

Checked = Callable[..., str]


@pytest.fixture
def checked(
    store: FileStore,
    sky_home: SkyHome,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Checked:
    """What the checks say of a ladder that is not rented for."""

    def check(*words: str, resources: str = "accelerators: A40") -> str:
        tasks = tasks_of(launch_runs, monkeypatch)
        on = str(sky_home.yaml(resources, text=BOOTED))
        assert main([*LADDER, *words, "--on", on]) == 2
        assert not tasks
        out, err = capsys.readouterr()
        return in_one_line(out + err)

    return check


def test_a_folder_of_this_machine_is_no_store_for_a_rental(checked: Checked) -> None:
    said = checked("--hours", "3")
    assert "is a folder, which would be lost with the rented machine" in said
    assert "checked below: the largest run, tiny-ladder-64x" in said
    assert "store from there" in said.partition("error:")[2]


@pytest.mark.soak  # the whole check of a ladder's largest run
def test_the_largest_run_must_fit_on_the_card(checked: Checked) -> None:
    large = ("model.d_model=8192", "model.n_layers=48", "model.n_heads=64", "model.d_ff=22016")
    said = checked("--hours", "3", *large, "model.n_kv_heads=64")
    assert "1 × A40 on demand on RunPod" in said.partition("error:")[2]
