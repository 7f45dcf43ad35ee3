"""`pion data` shows what runs share, and deletes what no run uses, an hour after it says so."""

import dataclasses
import json
import sys

import pytest

from pipeline.state.claim import claim_run
from pipeline.state.head import TRASH_SECONDS, data_key
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.shared.find_or_prepare import find_or_prepare
from pipeline.state.shared.folder import complete
from pipeline.state.shared.prune import delete_due
from pipeline.state.shared.records import Writer, read_state, swap_state
from pipeline.state.stores import FileStore
from pipeline.state.stores.clock import Clock

USED, UNUSED = "aa" * 32, "ab" * 32
CONTENT = b"forty bytes of rows, forty bytes of rows"


@pytest.fixture
def store(here):
    """A store in which the run `demo` uses data, and a deleted run has used other data."""
    store = FileStore(here / "runs")
    use_data(store, "demo", USED)
    use_data(store, "gone", UNUSED)
    store.delete("gone/HEAD.json")
    return store


def begins(store, claim, fingerprint, *, again=False):
    run, me = RunState(store, claim.state.name), Owner.me()
    return find_or_prepare(run, fingerprint, claim.epoch, me, lambda *waits: None, again=again)


def use_data(store, name, fingerprint, *, again=False):
    """Let a run prepare and use data; return the folder."""
    claim = claim_run(RunState(store, name), Owner.me())
    folder = begins(store, claim, fingerprint, again=again)
    if isinstance(folder, Writer):
        files = store.folder.parent / "prepared"
        files.mkdir(exist_ok=True)
        (files / "dataset.json").write_bytes(CONTENT)
        folder = complete(RunState(store, name), fingerprint, folder, files, ("docs",))
    claim.commit(lambda head: head.with_data({"pretrain": data_key(fingerprint, folder)}))
    claim.release()
    return folder


def an_hour_passes(store, fingerprint):
    """Set the times of all marks back."""
    state, version = read_state(store, fingerprint)
    assert swap_state(
        store,
        fingerprint,
        dataclasses.replace(
            state,
            delete_after=state.delete_after and state.delete_after - TRASH_SECONDS - 1,
            unneeded=tuple(
                dataclasses.replace(item, not_before=item.not_before - TRASH_SECONDS - 1)
                for item in state.unneeded
            ),
        ),
        version,
    )


def contents(store):
    return {entry.key: store.read(entry.key) for entry in store.list()}


def fingerprints(store):
    """Return the fingerprints of which there are rows."""
    keys = [entry.key.split("/") for entry in store.list("_data/")]
    return {parts[1] for parts in keys if len(parts) > 3}


def listed(pion):
    code, output, _ = pion("data", "--json")
    assert code == 0
    return {one["fingerprint"]: one for one in json.loads(output)}


# ---------------------------------------------------------------- what is shown


def test_data_is_shown_with_its_size_and_its_runs(store, pion):
    use_data(store, "second", USED)
    code, output, _ = pion("data")
    assert code == 0
    unused, used = sorted(output.splitlines()[:2], key=lambda line: "used by no run" not in line)
    assert (USED[:12] in used, UNUSED[:12] in unused) == (True, True)
    assert "40 B" in used
    assert "docs: used by demo, second" in used
    assert "used by no run: 40 B. To delete: pion data --prune" in output


def test_data_as_json(store, pion):
    found = listed(pion)
    assert found[USED]["runs"] == ["demo"]
    assert found[USED]["bytes"] == 40
    assert (found[UNUSED]["runs"], found[UNUSED]["delete_after"]) == ([], None)


def test_a_store_without_shared_data_is_shown_as_such(here, pion):
    assert "shares prepared data" in pion("data")[1]
    assert json.loads(pion("data", "--json")[1]) == []
    assert "no run in " in pion("data", "--prune", "--yes")[1]
    assert not (here / "runs").exists()


# ---------------------------------------------------------------- what is refused


def test_without_a_terminal_and_yes_nothing_is_marked(store, pion):
    before = contents(store)
    code, _, error = pion("data", "--prune")
    assert code == 2
    assert "there is no terminal to ask. Nothing was deleted. Add --yes" in error
    assert contents(store) == before


@pytest.mark.parametrize("answer", ["", "n", "Y", "end of file"])
def test_at_a_terminal_only_a_yes_agrees(store, pion, answer, monkeypatch):
    def ask(question):
        assert "40 B, in an hour?" in question
        if answer == "end of file":
            raise EOFError
        return answer

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)
    assert pion("data", "--prune")[0] == (0 if answer == "Y" else 2)
    assert (listed(pion)[UNUSED]["delete_after"] is not None) == (answer == "Y")


@pytest.mark.parametrize(
    ("only", "why"),
    [
        (USED, "used by demo. Nothing was deleted. If you no longer need that run"),
        ("abba", f"is not there. Nothing was deleted. In {{url}}: {USED[:12]}, {UNUSED[:12]}"),
        ("a", "means several. Nothing was deleted"),
    ],
)
def test_only_data_that_is_meant_and_not_used_may_be_deleted(store, pion, only, why):
    before = contents(store)
    code, _, error = pion("data", "--prune", "--yes", "--only", only, "--only", UNUSED)
    assert code == 2
    assert why.format(url=store.url) in error
    assert contents(store) == before


def test_only_and_yes_alone_are_refused(store, pion):
    for option in (("--yes",), ("--only", UNUSED)):
        assert pion("data", *option)[0] == 2


def test_while_a_head_cant_be_read_nothing_is_deleted(store, pion):
    assert pion("data", "--prune", "--yes")[0] == 0
    an_hour_passes(store, UNUSED)
    store.write("demo/HEAD.json", b"no HEAD")
    before = contents(store)
    code, _, error = pion("data", "--prune", "--yes")
    assert code == 2
    assert "demo/HEAD.json is damaged" in error
    assert contents(store) == before


# ---------------------------------------------------------------- what is deleted


def test_what_no_run_uses_is_deleted_an_hour_later(store, pion):
    code, output, _ = pion("data", "--prune", "--yes")
    assert code == 0
    assert "marked for deletion: 1." in output
    assert fingerprints(store) == {USED, UNUSED}
    assert "used by no run; to be deleted after" in pion("data")[1]
    an_hour_passes(store, UNUSED)
    assert f"deleted 40 B: {UNUSED[:12]}" in pion("data", "--prune", "--yes")[1]
    assert fingerprints(store) == {USED}


def test_as_json_it_says_what_it_marked_and_deleted(store, pion):
    about = json.loads(pion("data", "--prune", "--yes", "--json", "--only", UNUSED[:3])[1])
    assert (about["marked"], about["deleted"]) == ([UNUSED], [])
    assert [one["fingerprint"] for one in about["waiting"]] == [UNUSED]
    an_hour_passes(store, UNUSED)
    about = json.loads(pion("data", "--prune", "--yes", "--json")[1])
    assert (about["deleted"], about["bytes_deleted"], about["waiting"]) == ([UNUSED], 40, [])


def test_a_run_that_needs_marked_data_has_it_for_good(store, pion):
    pion("data", "--prune", "--yes")
    use_data(store, "late", UNUSED)
    assert read_state(store, UNUSED)[0].delete_after is None
    assert "nothing to delete" in pion("data", "--prune", "--yes")[1]
    assert delete_due(store, Clock()) == ([], 0)
    assert fingerprints(store) == {USED, UNUSED}


def test_a_folder_that_was_replaced_is_deleted_though_its_data_is_used(store, pion):
    new = use_data(store, "demo", USED, again=True)
    output = pion("data")[1]
    assert "used by demo; 40 B of it by no run" in output
    assert "used by no run: 80 B. To delete" in output
    pion("data", "--prune", "--yes")
    an_hour_passes(store, USED)
    assert "deleted 40 B" in pion("data", "--prune", "--yes")[1]
    assert store.read(f"{data_key(USED, new)}/dataset.json") == CONTENT
    assert listed(pion)[USED]["bytes"] == 40


def test_what_is_being_prepared_is_not_marked(store, pion):
    claim = claim_run(RunState(store, "busy"), Owner.me())
    writer = begins(store, claim, UNUSED, again=True)
    assert isinstance(writer, Writer)
    assert f"being prepared by {claim.state.name}" in pion("data")[1]
    before = contents(store)
    assert "nothing to delete" in pion("data", "--prune", "--yes")[1]
    code, _, error = pion("data", "--prune", "--yes", "--only", UNUSED)
    assert code == 2
    assert "this data is used by busy" in error
    assert contents(store) == before
    claim.release()
    assert "marked for deletion: 1." in pion("data", "--prune", "--yes")[1]
