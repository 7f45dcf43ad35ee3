"""A run that has lost HEAD.json is not a new run: nothing may be written over its work."""

import os
import re

import pytest

from pion.errors import BadInput
from pipeline.commands.fork import fork_run
from pipeline.commands.status import show_runs, show_statuses
from pipeline.rent.check.job import check_store
from pipeline.run.done_and_changed_stages import work_left
from pipeline.state.claim import claim_run
from pipeline.state.find_run import known_runs, read_run, runs_in
from pipeline.state.head import data_key
from pipeline.state.notes.rental_note import RentalNote, write_rental_note
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.shared.prune import delete_due, list_shared, mark
from pipeline.state.shared.records import DataState, swap_state
from pipeline.state.stores import FileStore, open_store
from pipeline.state.stores import base as stores_base
from tests.support.jobs import tiny_job
from tests.support.light_run import light_run
from tests.support.many_runs import write_runs
from tests.support.side_by_side import SideBySide
from tests.support.states import someone


def without_head(store):
    run = light_run(store)
    store.delete(run.key("HEAD.json"))
    return run


def test_what_is_left_of_a_run_is_named_and_nothing_starts(store):
    run = without_head(store)
    for attempt in (
        lambda: claim_run(run, Owner.me()),
        lambda: work_left(tiny_job(name="demo"), run),
        lambda: fork_run(light_run(store, "other"), light_run(store, "third").read(), run),
    ):
        with pytest.raises(BadInput) as refused:
            attempt()
        message = str(refused.value)
        assert re.search(r"no HEAD.json.*pretrain/20-2.*sft/5-2.*metrics", message)
        assert "Put HEAD.json back" in message
        assert f"pion rm {run.url}" in message
    assert run.read() is None


def test_a_sign_of_an_owner_is_enough(run):
    run.store.write(run.key("owner/1.json"), b"{}")
    with pytest.raises(BadInput, match="owner"):
        claim_run(run, Owner.me())


def test_what_is_there_before_a_run_begins_does_not_hinder_it(run):
    for name in ("rental.json", "deadline.json", "watcher.json", "requests/1.json", "probe-0a"):
        run.store.write(run.key(name), b"{}")
    run.store.write("demo-2/owner/1.json", b"{}")  # of another run
    assert claim_run(run, someone()).epoch == 1


# ---------------------------------------------------------------- a store with many runs


FINGERPRINT = "0f" * 32
LISTS = re.compile(r"list-type=2.*[?&]prefix=([^& ]*)")


def listed(proxy):
    """Return the prefixes of all lists."""
    return [found[1] for request in proxy.requests if (found := LISTS.search(request))]


@pytest.mark.slow
@pytest.mark.parametrize("objects", [2, 6])
def test_a_list_of_all_runs_asks_for_each_head_and_lists_nothing_below_a_run(s3, proxy, objects):
    store = open_store(f"s3://{s3.bucket()}/runs")
    names = write_runs(store, 20, objects)
    store.write("not-a-run/notes.txt", b"")
    proxy.requests.clear()
    assert list(runs_in(store)) == names
    assert listed(proxy) == ["runs%2F"]
    assert len(proxy.requests) == 1 + len(names) + 1


def test_the_status_of_one_run_asks_for_that_run_only(s3, proxy, capsys):
    url = f"s3://{s3.bucket()}/runs"
    write_runs(open_store(url), 5, 3)
    proxy.requests.clear()
    show_statuses([f"{url}/run-0003"], as_json=True)
    assert proxy.requests
    others = [request for request in proxy.requests if "run-0003" not in request]
    assert all("max-keys=1&" in request for request in others)  # asks for the service's clock


def test_a_check_of_a_job_asks_for_none_of_the_other_runs(s3, proxy):
    url = f"s3://{s3.bucket()}/runs"
    write_runs(open_store(url), 5, 3)
    proxy.requests.clear()
    rows = check_store(tiny_job(store=url))
    assert all(row.ok for row in rows), rows
    assert {prefix.split("%2F")[1] for prefix in listed(proxy)} == {"tiny"}
    assert not any("/runs/run-0" in request for request in proxy.requests)


def test_a_run_whose_head_can_not_be_read_hides_no_other(tmp_path, monkeypatch, capsys):
    store = FileStore(tmp_path / "runs")
    write_runs(store, 3, 1)
    (tmp_path / "runs/run-0001/HEAD.json").write_text("{")
    (tmp_path / "runs/without-head").mkdir()
    unreadable = {}
    assert list(runs_in(store, unreadable)) == ["run-0000", "run-0002"]
    assert list(unreadable) == ["run-0001"]
    with pytest.raises(BadInput, match=r"run-0001/HEAD\.json is damaged"):
        runs_in(store)  # who deletes what no run uses must know of each
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"run-0001/HEAD\.json is damaged"):
        show_runs(as_json=False)
    printed = capsys.readouterr().out
    assert re.search(r"^run-0000 +done: nothing", printed, re.M)
    assert re.search(r"^run-0001 +can't be read", printed, re.M)
    assert "without-head" not in printed


def test_a_run_without_head_among_many_hides_no_other(here, pion, time, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = FileStore(here / "runs")
    names = write_runs(store, 60, 1)
    lost = names.pop(30)
    store.delete(f"{lost}/HEAD.json")
    store.write(f"{lost}/metrics/pretrain/1/000000.jsonl", b"")
    swap_state(store, FINGERPRINT, DataState("ab" * 16, 1, 0.0), None)
    store.write(f"{data_key(FINGERPRINT, 'ab' * 16)}/shard", b"1")
    assert list(runs_in(store)) == names
    assert mark(store, [FINGERPRINT], time.clock()) == [FINGERPRINT]
    time.sleep(3601)
    assert delete_due(store, time.clock()) == ([FINGERPRINT], 1)
    code, out, _ = pion("status")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == names
    code, out, _ = pion("status", names[-1])
    assert (code, out.splitlines()[0]) == (0, f"{names[-1]} in {store.url}")
    code, _, error = pion("status", lost)
    assert code == 2
    assert f"{lost} has no HEAD.json, but work of a run lies there: metrics" in error


def test_a_message_names_some_runs_of_many(tmp_path):
    store = FileStore(tmp_path / "runs")
    write_runs(store, 60, 1)
    words = known_runs(store)
    assert "run-0049, and 10 other folders." in words
    assert "run-0050" not in words


@pytest.fixture
def crowded(s3, proxy, monkeypatch):
    """A bucket with a run among 15 photos. At most 10 names are looked through, 4 to a page."""
    monkeypatch.setattr(stores_base, "MOST_NAMES", 10)
    store = open_store(f"s3://{s3.bucket()}")
    for number in range(15):
        store.write(f"photo-{number:02}.jpg", b"")
    write_runs(store, 1, 2)
    proxy.page_size = 4
    proxy.requests.clear()
    return store


def test_a_place_with_too_many_other_names_is_refused_before_all_are_listed(crowded, proxy):
    with pytest.raises(BadInput, match=r"more than 10 files .* for example in s3://\S+/runs\."):
        runs_in(crowded)
    assert len(listed(proxy)) == 3


def test_a_run_in_a_crowded_place_is_found_by_its_name(crowded, proxy):
    state, head = read_run(f"{crowded.url}/run-0000")
    assert (state.name, head.epoch) == ("run-0000", 1)
    assert not listed(proxy)
    claim_run(RunState(crowded, "new"), someone())
    assert {prefix.partition("%2F")[0] for prefix in listed(proxy)} == {"new"}


def test_a_run_that_no_machine_has_begun_names_who_rents_for_it(run):
    write_rental_note(run, RentalNote(0.0, "desk", "0123abcd", "rented", 0), None)
    with pytest.raises(BadInput, match=r"'demo' yet\. .* from desk .*: pion watch \S+/demo$"):
        read_run(run.url)


def test_a_wrong_name_in_a_crowded_place_is_called_that(crowded):
    with pytest.raises(BadInput, match=r"^no run 'run-000' in the store .* more than 10 files"):
        read_run(f"{crowded.url}/run-000")


def test_other_files_in_a_folder_cost_nothing_and_other_folders_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(stores_base, "MOST_NAMES", 10)
    store = FileStore(tmp_path / "runs")
    names = write_runs(store, 10, 1)
    for number in range(20):
        (store.folder / f"photo-{number}.jpg").touch()
    assert list(runs_in(store)) == names
    (store.folder / "eleventh").mkdir()
    with pytest.raises(BadInput, match=r"more than 10 files .* for example in /\S+/runs/runs\."):
        runs_in(store)


def test_a_link_that_leads_nowhere_hides_no_run(tmp_path):
    store = FileStore(tmp_path / "runs")
    names = write_runs(store, 2, 1)
    for name, target in (
        ("itself", "itself"),
        ("gone", "/nothing"),
        ("file", "run-0000/HEAD.json"),
    ):
        (store.folder / name).symlink_to(target)
    (store.folder / "linked").symlink_to("run-0001")
    assert sorted(runs_in(store)) == ["linked", *names]


class CountsHeads(FileStore):
    """A folder that counts how often a HEAD is read."""

    heads = 0

    def read_versioned(self, key):
        self.heads += key.endswith("/HEAD.json")
        return super().read_versioned(key)


def test_however_much_data_is_marked_and_deleted_each_head_is_read_once_a_step(tmp_path, time):
    store, clock = CountsHeads(tmp_path / "runs"), time.clock()
    write_runs(store, 4, 1)
    names = [f"{number:x}" * 64 for number in range(5)]
    for number, fingerprint in enumerate(names):
        folder = f"{number:x}" * 32
        swap_state(store, fingerprint, DataState(folder, 1, clock.now()), None)
        store.write(f"{data_key(fingerprint, folder)}/shard", b"1")
    assert mark(store, names, clock) == names
    assert store.heads == 4
    assert mark(store, names, clock) == []
    time.sleep(3601)
    store.heads = 0
    assert delete_due(store, clock) == (names, 5)
    assert store.heads == 2 * 4  # before the data is unusable, and before it is deleted


def test_the_states_of_much_data_are_read_side_by_side(tmp_path, time):
    fingerprints = [f"{number:x}" * 64 for number in range(5)]
    for fingerprint in fingerprints:
        swap_state(FileStore(tmp_path), fingerprint, DataState("ab" * 16, 1, 0.0), None)
        FileStore(tmp_path).write(f"{data_key(fingerprint, 'ab' * 16)}/shard", b"1")
    seen = SideBySide(tmp_path, r"_data/.*/state\.json", len(fingerprints))
    assert [one.fingerprint for one in list_shared(seen, time.clock())] == fingerprints
