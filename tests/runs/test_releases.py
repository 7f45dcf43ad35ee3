"""Runs of older releases are done, resume, and can be read as if today's code had written them.

They are in tests/fixtures: `done` is finished and published, `half` was killed in pretraining
between two checkpoints, and `rented` was killed on a rented machine with a deadline.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import main
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store, open_store
from tests.paths import RELEASES
from tests.support import later_version
from tests.support.hub_server import USER, hub_server
from tests.support.states import read
from tests.support.whole_runs import head_of

NAMES = ("done", "half", "rented")
# How much weights may differ between kinds of CPU.
TOLERANCE = 1e-3


def everywhere(**by_default):
    """Each release in each kind of store; by default only those of `by_default`, by release."""
    cases = (
        pytest.param(
            (release, kind),
            marks=[] if by_default.get(release) == kind else [pytest.mark.soak],
            id=f"{release}-{kind}",
        )
        for release in RELEASES
        for kind in ("file", "s3", "hub")
    )
    return pytest.mark.parametrize("older", list(cases), indirect=True)


@dataclass(frozen=True)
class Older:
    """A store for runs of a release, and a working directory with their jobs."""

    release: Path
    store: Store
    capsys: pytest.CaptureFixture[str]

    def bring(self, *names):
        """Copy these runs and all data into the store, as the release wrote them to a store of
        this kind."""
        for name in ("_data", *names):
            folder = self.store.local_path(name)
            if folder is not None:
                shutil.copytree(self.release / "store" / name, folder)
            else:
                for left in ("store", "remote"):
                    copy_objects(self.release / left, name, self.store)

    def pion(self, *arguments):
        """Run a command of today's code in this process; return what it printed."""
        code = main(list(arguments))
        output = "".join(self.capsys.readouterr())
        assert code == 0, output
        return output

    def run(self, name, *more):
        return self.pion("run", f"{name}.yaml", f"store={self.store.url}", *more)

    def url(self, name):
        return f"{self.store.url}/{name}"

    def head(self, name):
        return read(RunState(self.store, name))

    def read(self, path):
        return json.loads(self.store.read(path))

    @property
    def expected(self):
        """What the release came to when it resumed `half`."""
        return json.loads((self.release / "expected.json").read_text())["half"]

    def last_checkpoint(self, name):
        """Return the newest checkpoint that a run had when it was killed."""
        return json.loads((self.release / "store" / name / "HEAD.json").read_text())["checkpoints"][
            0
        ]

    def resumes(self, name):
        """Return what is said when a run resumes its pretraining."""
        return f"pretrain: starts (continues after step {self.last_checkpoint(name)['step']})"


@pytest.fixture
def open_fresh_store(tmp_path, request, monkeypatch):
    """Opens an empty store of a kind: file, s3 or hub."""
    with contextlib.ExitStack() as servers:

        def fresh(kind):
            if kind == "s3":
                s3 = request.getfixturevalue("s3")
                s3.use(monkeypatch)
                return open_store(f"s3://{s3.bucket()}/runs")
            if kind == "hub":
                hub = servers.enter_context(hub_server())
                hub.add_repo(f"{USER}/state")
                hub.use(monkeypatch, tmp_path / "hf")
                return open_store(f"hf://{USER}/state")
            return open_store(str(tmp_path / "runs"))

        yield fresh


@pytest.fixture
def older(tmp_path, request, monkeypatch, capsys, open_fresh_store):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    release, kind = request.param
    shutil.copytree(RELEASES[release] / "inputs", tmp_path, dirs_exist_ok=True)
    threads = torch.get_num_threads()
    yield Older(RELEASES[release], open_fresh_store(kind), capsys)
    torch.set_num_threads(threads)


def copy_objects(folder, name, store):
    swapped = ("HEAD.json", "deadline.json", "rental.json", "state.json")
    for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
        key = path.relative_to(folder).as_posix()
        if path.name in swapped and "checkpoints" not in path.parts:
            store.compare_and_swap(key, path.read_bytes(), None)
        elif not path.name.startswith("."):  # of a store that is a folder
            store.write(key, path.read_bytes())
    store.flush()


# ---------------------------------------------------------------- finished


@everywhere(v0_1_0="hub", v0_2_0="file")
def test_a_finished_run_is_done_and_can_be_read_with_every_command(older, tmp_path):
    older.bring(*NAMES)
    is_done(older)
    for name in NAMES:
        assert f"{name} in {older.store.url}" in older.pion("status", older.url(name))
        assert older.pion("report", older.url(name))
        rows = json.loads(older.pion("checkpoints", older.url(name), "--verify", "--json"))
        assert [row["verified"] for row in rows] == [True] * len(older.head(name).checkpoints)
    status = json.loads(older.pion("status", older.url("done"), "--json"))
    assert status["checkpoint"]["stage"] == older.head("done").checkpoints[0].stage
    answer = older.pion("generate", older.url("done"), "--prompt", "the", "--max-tokens", "3")
    assert answer.startswith("the")
    assert "logits" in older.pion("export", older.url("done"), "tuned")
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["model_type"] == "qwen3"


def is_done(older):
    before = older.store.read("done/HEAD.json")
    output = older.run("done")
    assert all(f"{stage}: done (finished 20" in output for stage in older.head("done").stages)
    assert older.store.read("done/HEAD.json") == before


# ---------------------------------------------------------------- their data


def data_of(store):
    keys = [entry.key for entry in store.list("_data/")]
    return {key: store.read(key) for key in keys if not key.startswith("_data/speeds/")}


def prepares_nothing(output):
    return "training a BPE" not in output and "tokenise" not in output


@everywhere()  # test_a_half_done_run has most of it
def test_their_data_is_trained_on_and_stays_as_it_was(older):
    older.bring("half", "done")
    before, used = data_of(older.store), {name: older.head(name).data for name in ("half", "done")}
    assert before
    assert prepares_nothing(older.run("half", "--take-over") + older.run("done"))
    older.pion("data", older.store.url, "--prune", "--yes")
    older.pion("fork", older.url("done"), "done-2")
    older.run("done", "name=done-2", "--until", "sft")
    assert data_of(older.store) == before
    assert {name: older.head(name).data for name in ("half", "done")} == used
    assert older.head("done-2").data == used["done"]


# ---------------------------------------------------------------- rented


@everywhere(v0_1_0="s3")
def test_a_rented_run_keeps_its_rental_and_its_deadline_and_ends_here(older):
    older.bring("rented")
    before = {name: older.read(f"rented/{name}.json") for name in ("rental", "deadline", "watcher")}
    status = older.pion("status", older.url("rented"))
    assert "set by pion launch (" in older.pion("deadline", older.url("rented"))
    assert "deadline" in status
    output = older.run("rented", "--take-over")
    assert older.resumes("rented") in output
    assert older.head("rented").checkpoints[0].step == 60
    assert before == {name: older.read(f"rented/{name}.json") for name in before}


# ---------------------------------------------------------------- half done


@everywhere(v0_1_0="file", v0_2_0="file")
def test_a_half_done_run_ends_as_it_would_have_ended(older):
    older.bring("half")
    before, used = data_of(older.store), older.head("half").data
    output = older.run("half", "--take-over")
    assert older.resumes("half") in output
    assert prepares_nothing(output)
    assert data_of(older.store) == before
    assert older.head("half").data == used
    ends_as_it_would_have_ended(older)


def ends_as_it_would_have_ended(older):
    head = older.head("half")
    entry = head.checkpoints[0]
    assert entry.step == head.stages["pretrain"].result["steps"] == older.expected["steps"]
    assert "evaluate" in head.stages
    begun = older.release / "store/half" / older.last_checkpoint("half")["key"] / "state.json"
    states = json.loads(begun.read_text()), older.read(f"half/{entry.key}/state.json")
    plans = [state["plan"] for state in states]
    if plans[1]["device"] != "cpu":
        return  # a GPU computes differently: only check that the run resumes there
    assert plans[0] == plans[1]
    if entry.model_sha256 != older.expected["model_sha256"]:  # another kind of CPU
        weights = f"half/{entry.key}/model.safetensors"
        older.store.download(weights, Path("finished.safetensors"))
        found = load_file("finished.safetensors")
        expected = load_file(older.release / "half_finished.safetensors")
        assert all(torch.allclose(found[n], expected[n], atol=TOLERANCE) for n in expected)
        assert not same_cpu(older)


def same_cpu(older):
    """Return whether this machine computes the half-done run exactly as the release's did."""
    assert main(["run", "half.yaml", "store=again"]) == 0
    return head_of("again", "half").checkpoints[0].model_sha256 == older.expected["model_sha256"]


@everywhere(v0_1_0="file")
def test_forks_continue_from_its_checkpoints(older):
    older.bring("half", "done")
    older.pion("fork", older.url("half"), "half-2", "--at", "4")
    output = older.run("half", "name=half-2", "pretrain.steps=20", "pretrain.lr=5e-3")
    assert "pretrain: starts (continues after step 4)" in output
    assert older.head("half-2").checkpoints[0].step == 20
    older.pion("fork", older.url("done"), "done-2", "--stage", "pretrain")
    older.run("done", "name=done-2", "sft.steps=4", "--until", "sft")
    before, after = older.head("done"), older.head("done-2")
    trained = {entry.step: entry for entry in before.checkpoints if entry.stage == "pretrain"}
    copied = next(e for e in after.checkpoints if e.key == after.stages["pretrain"].checkpoint)
    assert copied.model_sha256 == trained[12].model_sha256
    assert after.stages["sft"].result["steps"] == 4


# ---------------------------------------------------------------- and by a version with new fields


@pytest.mark.parametrize("older", [("v0_1_0", "file")], indirect=True)
def test_a_version_with_new_fields_takes_them_for_what_they_are(older, monkeypatch):
    older.bring("half", "done")
    later_version.install(monkeypatch)
    is_done(older)
    assert "logits" in older.pion("export", older.url("done"), "tuned")
    older.run("half", "--take-over")
    ends_as_it_would_have_ended(older)
