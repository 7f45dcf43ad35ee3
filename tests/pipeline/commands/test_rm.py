"""`pion rm` removes all of a run, and nothing that others use. Nothing can continue half a run."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from pion.errors import BadInput, Fenced
from pipeline.state.checkpoints.restore import check_entry
from pipeline.state.claim import claim_run
from pipeline.state.find_run import open_run
from pipeline.state.head import BeingRemoved
from pipeline.state.notes.rental_note import RentalNote, write_rental_note
from pipeline.state.owner import Owner
from pipeline.state.removal import find_removable, remove
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from pipeline.state.workspace import Workspace
from tests.faults.faulty_store import FaultyStore, fail
from tests.pipeline.commands.test_data import USED, contents, fingerprints, use_data
from tests.support.hub_server import USER, hub_server
from tests.support.jobs import tiny_dict, write_tiny_data
from tests.support.light_run import light_run
from tests.support.states import someone


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where copies of remote runs are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(here, time):
    """A store with the runs `demo` and `other`."""
    store = FileStore(here / "runs")
    light_run(store, clock=time.clock())
    light_run(store, "other", time.clock())
    return store


def files(folder):
    """Return the content of all files below `folder`, not through links."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def half_removed(run):
    """Let a removal of the run end at its third deletion."""
    deletions = 0

    def dies(operation):
        nonlocal deletions
        deletions += operation.startswith("delete")
        if deletions == 3:
            fail(operation)

    faulty = FaultyStore(run.store)
    delete = faulty.delete
    faulty.delete = lambda key: (dies(f"delete {key}"), delete(key))[1]
    with pytest.raises(StoreError):
        remove(find_removable(RunState(faulty, run.name)))


def test_all_of_a_run_goes_and_all_else_stays(store, pion):
    use_data(store, "third", USED)
    before = contents(store)
    (store.folder / "demo" / "my notes.txt").write_text("no key")
    (store.folder / "elsewhere").mkdir()
    (store.folder / "elsewhere" / "precious").write_text("!")
    (store.folder / "demo" / "link").symlink_to(store.folder / "elsewhere")
    code, output, error = pion("rm", "demo", "third", "runs/demo", "--yes")
    assert (code, error) == (0, "")
    assert output.count("freed") == 2
    assert re.search(r"prepared data used by no run: \d+ B\. To delete: pion data --prune", output)
    gone = {key: data for key, data in before.items() if not key.startswith(("demo/", "third/"))}
    assert contents(store) == gone | {"elsewhere/precious": b"!"}
    assert not (store.folder / "demo").exists()
    assert USED in fingerprints(store)
    code, _, error = pion("rm", "demo", "--yes")
    assert code == 2
    assert "no run 'demo'" in error
    assert light_run(store).read() is not None  # the name is free


def test_without_a_terminal_and_yes_nothing_goes(store, pion):
    before = contents(store)
    code, output, error = pion("rm", "demo")
    assert (code, "demo: " in output) == (2, True)
    assert "there is no terminal to ask. Nothing was deleted. Add --yes" in error
    assert contents(store) == before


@pytest.mark.parametrize("answer", ["", "n", "Y"])
def test_at_a_terminal_only_a_yes_agrees(store, pion, answer, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert pion("rm", "demo", "other")[0] == (0 if answer == "Y" else 2)
    left = [key for key in contents(store) if not key.startswith("_data/")]
    assert (left == []) == (answer == "Y")


@pytest.mark.parametrize("owner", [Owner.me(), someone()])
def test_a_run_that_may_be_owned_stays_unless_a_person_knows_better(store, pion, owner):
    claim = claim_run(RunState(store, "demo"), owner)
    before = contents(store)
    code, _, error = pion("rm", "other", "demo", "--yes")
    assert code == 2
    assert f"{owner.describe()} owns run demo. Stop it first: pion stop" in error
    assert contents(store) == before
    assert pion("rm", "demo", "--yes", "--take-over")[0] == 0
    with pytest.raises(Fenced, match="was deleted"):
        claim.set_job("later")
    assert not store.list("demo/")


def test_an_owner_stops_when_its_run_is_being_removed(store):
    claim = claim_run(RunState(store, "demo"), someone())
    found = find_removable(RunState(store, "demo"), take_over=True)
    claim.set_job("later")
    with pytest.raises(BadInput, match="changed by another process"):
        remove(found)
    store.write("demo/HEAD.json", b'{"format": 5}')
    claim.heartbeat.beat()
    with pytest.raises(Fenced, match="was deleted"):
        claim.check()


def test_a_run_with_a_rented_machine_stays(store, pion):
    run = RunState(store, "demo")
    write_rental_note(run, RentalNote(1.0, "laptop", "hash", "launch", 2), None)
    before = contents(store)
    code, _, error = pion("rm", "demo", "--yes")
    assert code == 2
    assert "from laptop" in error
    assert f"pion rentals {run.url}" in error
    assert contents(store) == before
    assert pion("rm", "demo", "--yes", "--take-over")[0] == 0


def test_what_is_left_of_a_run_without_head_goes(store, pion):
    store.delete("demo/HEAD.json")
    assert pion("rm", "demo", "--yes")[0] == 0
    assert not store.list("demo/")


def test_commands_refuse_a_run_that_is_being_removed(store, here, pion):
    use_data(store, "third", USED)
    run = RunState(store, "demo")
    half_removed(run)
    write_tiny_data(here)
    (here / "job.yaml").write_text(yaml.safe_dump(tiny_dict(name="demo")))
    for command in (
        ("run", "job.yaml"),
        ("status", "demo"),
        ("fork", "demo", "new"),
        ("fork", "other", "demo"),
        ("check", "job.yaml", "--json"),
        ("stop", "demo"),
    ):
        code, output, error = pion(*command)
        assert code != 0, command
        assert f"{run.url} is being removed" in output + error
        assert f"To finish: pion rm {run.url}" in output + error
    assert "used by third" in pion("data")[1]
    assert "demo" not in pion("status")[1]
    assert pion("rm", "demo", "--yes")[0] == 0
    assert not store.list("demo/")


@pytest.fixture(params=["s3", "hub"])
def remote(request, here, monkeypatch):
    """The URL of an empty store that is no folder."""
    if request.param == "s3":
        yield request.getfixturevalue("s3_store")
        return
    with hub_server() as hub:
        hub.use(monkeypatch, here / "hf")
        hub.add_repo(f"{USER}/runs")
        yield f"hf://{USER}/runs"


def test_a_run_elsewhere_goes_with_its_copy_here(remote, cache, pion):
    run = light_run(open_run(f"{remote}/demo").store)
    light_run(run.store, "other")
    run.store.flush()
    head = run.read()
    assert check_entry(Workspace(run.store, run.name), head.checkpoints[0]) is None
    assert list(cache.glob("**/demo"))
    half_removed(run)
    run.store.flush()
    with pytest.raises(BeingRemoved):
        open_run(f"{remote}/demo").read()
    code, output, error = pion("rm", f"{remote}/demo", "--yes")
    assert (code, error) == (0, ""), output
    assert not list(cache.glob("**/demo"))
    kept = open_run(f"{remote}/other")
    assert not kept.store.list("demo/")
    assert kept.read() is not None


def test_only_a_run_is_removed(store, pion):
    for key in (
        "mine/notes/x",
        "mine/checkpoints/model.bin",
        "half/checkpoints/sft/5-2/state.json",
    ):
        store.write(key, b"precious")
    (store.folder / "half" / ".bashrc").write_text("precious")
    before = contents(store)
    assert "no run 'mine'" in pion("rm", "mine", "--yes")[2]
    code, _, error = pion("rm", "half", "--yes", "--take-over")
    assert code == 2
    assert "no HEAD.json, and .bashrc there was not written by Pion" in error
    assert contents(store) == before


def test_what_a_link_leads_to_stays(store, pion, tmp_path):
    elsewhere = tmp_path / "disk"
    (store.folder / "demo").rename(elsewhere)
    links = {
        "demo": elsewhere,
        "alias": Path("other"),
        "gone": Path("nowhere"),
        "loop": Path("loop"),
    }
    for name, target in links.items():
        (store.folder / name).symlink_to(target)
    before = files(tmp_path)
    for name in links:
        code, _, error = pion("rm", name, "--yes", "--take-over")
        assert code == 2
        assert f"runs/{name} is a link to" in error
    assert files(tmp_path) == before
    # A link inside a run goes, and what it leads to stays.
    checkpoint = next((elsewhere / "checkpoints/pretrain").iterdir())
    checkpoint.rename(tmp_path / "kept")
    checkpoint.symlink_to(tmp_path / "kept")
    kept = files(tmp_path / "kept")
    assert pion("rm", str(elsewhere), "--yes")[0] == 0
    assert not elsewhere.exists()
    assert files(tmp_path / "kept") == kept != {}
