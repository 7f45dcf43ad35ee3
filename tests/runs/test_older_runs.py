"""Runs of commit 0afbd30 are done, resume, and can be read as if today's code had written them.

They are in tests/fixtures/older_runs: `done` is finished and published, `half` was killed in
pretraining between two checkpoints, `tuned` is fine-tuned.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import main
from pipeline.state.head import Head
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store, open_store
from tests.paths import OLDER_RUNS
from tests.support import later_version
from tests.support.hub_server import USER, hub_server
from tests.support.s3_server import S3Server

EXPECTED = json.loads((OLDER_RUNS / "expected.json").read_text())
ALL_STAGES = {
    "done": ("prepare", "pretrain", "evaluate", "publish"),
    "tuned": ("prepare", "pretrain", "sft", "evaluate"),
}
# How much weights may differ between kinds of CPU.
TOLERANCE = 1e-3

everywhere = pytest.mark.parametrize("older", ["file", "s3", "hub"], indirect=True)
in_a_folder = pytest.mark.parametrize("older", ["file"], indirect=True)
elsewhere = pytest.mark.parametrize("older", ["s3", "hub"], indirect=True)


@dataclass(frozen=True)
class Older:
    """A store for runs of 0afbd30, and a working directory with their jobs."""

    store: Store
    capsys: pytest.CaptureFixture[str]

    def bring(self, *names: str) -> None:
        """Copy these runs into the store, as 0afbd30 wrote them to a store of this kind."""
        local = self.store.url.startswith("file:")
        for name in names:
            for left in ("store",) if local else ("store", "remote"):
                copy_objects(OLDER_RUNS / left, name, self.store)

    def pion(self, *arguments: str) -> str:
        """Run a command of today's code in this process; return what it printed."""
        code = main(list(arguments))
        output = "".join(self.capsys.readouterr())
        assert code == 0, output
        return output

    def run(self, name: str, *more: str) -> str:
        return self.pion("run", f"{name}.yaml", f"store={self.store.url}", *more)

    def url(self, name: str) -> str:
        return f"{self.store.url}/{name}"

    def head(self, name: str) -> Head:
        head = RunState(self.store, name).read()
        assert head is not None
        return head

    def read(self, path: str) -> Any:
        return json.loads(self.store.read(path))


@pytest.fixture
def open_fresh_store(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Store]]:
    """Opens an empty store of a kind: file, s3 or hub."""
    with hub_server() as hub:

        def fresh(kind: str) -> Store:
            if kind == "s3":
                s3: S3Server = request.getfixturevalue("s3")
                s3.use(monkeypatch)
                return open_store(f"s3://{s3.bucket()}/runs")
            if kind == "hub":
                hub.add_repo(f"{USER}/state")
                hub.use(monkeypatch, tmp_path / "hf")
                return open_store(f"hf://{USER}/state")
            return open_store(str(tmp_path / "runs"))

        yield fresh


@pytest.fixture
def older(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    open_fresh_store: Callable[[str], Store],
) -> Iterator[Older]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(OLDER_RUNS / "inputs", tmp_path, dirs_exist_ok=True)
    threads = torch.get_num_threads()
    yield Older(open_fresh_store(request.param), capsys)
    torch.set_num_threads(threads)


def copy_objects(folder: Path, name: str, store: Store) -> None:
    paths = [path for path in (folder / name).rglob("*") if path.is_file()]
    for path in paths:
        if path.name != "HEAD.json":
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())
    head = folder / name / "HEAD.json"
    if head in paths:
        store.compare_and_swap(f"{name}/HEAD.json", head.read_bytes(), None)
    store.flush()


# ---------------------------------------------------------------- finished


@everywhere
def test_a_finished_run_is_done_and_can_be_read_with_every_command(
    older: Older, tmp_path: Path
) -> None:
    older.bring("done", "half", "tuned")
    are_done(older)
    for name in ("done", "half", "tuned"):
        assert f"{name} in {older.store.url}" in older.pion("status", older.url(name))
        assert older.pion("report", older.url(name))
        rows = json.loads(older.pion("checkpoints", older.url(name), "--verify", "--json"))
        assert [row["verified"] for row in rows] == [True] * len(older.head(name).checkpoints)
    status = json.loads(older.pion("status", older.url("tuned"), "--json"))
    assert status["checkpoint"]["stage"] == "sft"
    answer = older.pion("generate", older.url("tuned"), "--prompt", "the", "--max-tokens", "3")
    assert answer.startswith("the")
    assert "logits" in older.pion("export", older.url("tuned"), "tuned")
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["model_type"] == "qwen3"


def are_done(older: Older) -> None:
    for name, stages in ALL_STAGES.items():
        before = older.store.read(f"{name}/HEAD.json")
        output = older.run(name)
        assert all(f"{stage}: done (finished 20" in output for stage in stages)
        assert older.store.read(f"{name}/HEAD.json") == before


@in_a_folder
def test_one_stage_can_be_done_again(older: Older) -> None:
    redo_sft(older)


@pytest.mark.soak
@elsewhere
def test_one_stage_can_be_done_again_elsewhere(older: Older) -> None:
    redo_sft(older)


def redo_sft(older: Older) -> None:
    older.bring("tuned")
    before = older.head("tuned").stages
    output = older.run("tuned", "sft.lr=2e-3", "--redo", "sft")
    assert "pretrain: done (finished 20" in output
    after = older.head("tuned").stages
    assert after["pretrain"] == before["pretrain"]
    assert after["sft"].digest != before["sft"].digest


@in_a_folder
def test_a_changed_setting_is_shown_before_anything_is_done(older: Older) -> None:
    older.bring("tuned")
    assert main(["run", "tuned.yaml", "sft.lr=2e-3"]) == 2
    output = older.capsys.readouterr().err
    assert "sft.lr: 0.001 → 0.002" in output
    assert "--redo sft" in output


# ---------------------------------------------------------------- their data


def data_in(older: Older, name: str) -> dict[str, bytes]:
    store = older.store
    return {entry.key: store.read(entry.key) for entry in store.list(f"{name}/data/")}


@pytest.mark.parametrize(
    "older",
    ["file", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("s3", "hub"))],
    indirect=True,
)
def test_its_own_data_is_trained_on_and_stays_as_it_was(older: Older) -> None:
    older.bring("half", "tuned")
    before = {name: data_in(older, name) for name in ("half", "tuned")}
    assert all(before.values())
    output = older.run("half", "--take-over") + older.run("tuned")
    assert "training a BPE" not in output
    assert "tokenise" not in output
    older.pion("data", older.store.url, "--prune", "--yes")
    older.pion("fork", older.url("tuned"), "tuned-2")
    older.run("tuned", "name=tuned-2")
    assert {name: data_in(older, name) for name in ("half", "tuned")} == before
    copied = {key.replace("tuned-2", "tuned", 1): d for key, d in data_in(older, "tuned-2").items()}
    assert copied == before["tuned"]
    assert list(older.store.list("_data/")) == []
    for name in ("half", "tuned", "tuned-2"):
        assert (older.head(name).data, older.head(name).format) == ({}, 1)


# ---------------------------------------------------------------- half done


@everywhere
def test_a_half_done_run_ends_as_it_would_have_ended(older: Older) -> None:
    older.bring("half")
    output = older.run("half", "--take-over")
    assert "pretrain: starts (continues after step 16)" in output
    ends_as_it_would_have_ended(older)


def ends_as_it_would_have_ended(older: Older) -> None:
    head = older.head("half")
    entry = head.checkpoints[0]
    assert entry.step == head.stages["pretrain"].result["steps"] == EXPECTED["half"]["steps"]
    assert "evaluate" in head.stages
    plans = [older.read(f"half/{key}/state.json")["plan"] for key in (resumed_from(), entry.key)]
    if plans[1]["device"] != "cpu":
        return  # a GPU computes differently: only check that the run resumes there
    assert plans[0] == plans[1]
    if entry.model_sha256 != EXPECTED["half"]["model_sha256"]:  # another kind of CPU
        weights = f"half/{entry.key}/model.safetensors"
        older.store.download(weights, Path("finished.safetensors"))
        found, expected = load_file("finished.safetensors"), load_file(EXPECTED_WEIGHTS)
        assert all(torch.allclose(found[n], expected[n], atol=TOLERANCE) for n in expected)
        assert not same_cpu()


EXPECTED_WEIGHTS = OLDER_RUNS / "half_finished.safetensors"


def resumed_from() -> str:
    head = json.loads((OLDER_RUNS / "store/half/HEAD.json").read_text())
    key: str = head["checkpoints"][0]["key"]
    return key


def same_cpu() -> bool:
    """Return whether this machine computes the half-done run exactly as 0afbd30's machine did."""
    assert main(["run", "half.yaml", "store=again"]) == 0
    head = RunState(open_store("again"), "half").read()
    assert head is not None
    return head.checkpoints[0].model_sha256 == EXPECTED["half"]["model_sha256"]


@in_a_folder
def test_its_steps_can_be_raised(older: Older) -> None:
    raise_steps(older)


@pytest.mark.soak
@elsewhere
def test_its_steps_can_be_raised_elsewhere(older: Older) -> None:
    raise_steps(older)


def raise_steps(older: Older) -> None:
    older.bring("half")
    output = older.run("half", "pretrain.steps=66", "--take-over")
    assert "pretrain: starts (continues after step 16)" in output
    assert older.head("half").checkpoints[0].step == 66


@in_a_folder
def test_forks_continue_from_its_checkpoints(older: Older) -> None:
    fork_and_continue(older)


@pytest.mark.soak
@elsewhere
def test_forks_continue_from_its_checkpoints_elsewhere(older: Older) -> None:
    fork_and_continue(older)


def fork_and_continue(older: Older) -> None:
    older.bring("half", "tuned")
    older.pion("fork", older.url("half"), "half-2", "--at", "4")
    output = older.run("half", "name=half-2", "pretrain.steps=20", "pretrain.lr=5e-3")
    assert "pretrain: starts (continues after step 4)" in output
    assert older.head("half-2").checkpoints[0].step == 20
    older.pion("fork", older.url("tuned"), "tuned-2", "--stage", "pretrain")
    older.run("tuned", "name=tuned-2", "sft.steps=4")
    before, after = older.head("tuned"), older.head("tuned-2")
    trained = {entry.step: entry for entry in before.checkpoints if entry.stage == "pretrain"}
    copied = next(e for e in after.checkpoints if e.key == after.stages["pretrain"].checkpoint)
    assert copied.model_sha256 == trained[8].model_sha256
    assert after.stages["sft"].result["steps"] == 4


# ---------------------------------------------------------------- and by a version with new fields


@in_a_folder
def test_a_version_with_new_fields_takes_them_for_what_they_are(
    older: Older, monkeypatch: pytest.MonkeyPatch
) -> None:
    older.bring("done", "half", "tuned")
    later_version.install(monkeypatch)
    are_done(older)
    assert "logits" in older.pion("export", older.url("tuned"), "tuned")
    older.run("half", "--take-over")
    ends_as_it_would_have_ended(older)
