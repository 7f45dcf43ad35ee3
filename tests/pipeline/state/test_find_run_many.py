"""What commands ask of a store with many runs: each run at most once, and nothing below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.commands.status import show_runs, show_statuses
from pipeline.state.find_run import known_runs, runs_in
from pipeline.state.head import data_key
from pipeline.state.shared.prune import delete_due, mark
from pipeline.state.shared.records import DataState, swap_state
from pipeline.state.stores import FileStore, open_store
from pipeline.state.stores import base as stores_base
from tests.support.clock import FakeClock
from tests.support.many_runs import write_runs
from tests.support.s3_server import FaultProxy, S3Server

LISTS = re.compile(r"list-type=2.*[?&]prefix=([^& ]*)")


def listed(proxy: FaultProxy) -> list[str]:
    """Return the prefixes of all lists."""
    return [found[1] for request in proxy.requests if (found := LISTS.search(request))]


@pytest.mark.parametrize("objects", [2, 6])
def test_a_list_of_all_runs_asks_for_each_head_and_lists_nothing_below_a_run(
    s3: S3Server, proxy: FaultProxy, objects: int
) -> None:
    store = open_store(f"s3://{s3.bucket()}/runs")
    names = write_runs(store, 20, objects)
    store.write("not-a-run/notes.txt", b"")
    proxy.requests.clear()
    assert list(runs_in(store)) == names
    assert listed(proxy) == ["runs%2F"]
    assert len(proxy.requests) == 1 + len(names) + 1


def test_the_status_of_one_run_asks_for_that_run_only(
    s3: S3Server, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://{s3.bucket()}/runs"
    write_runs(open_store(url), 5, 3)
    proxy.requests.clear()
    show_statuses([f"{url}/run-0003"], as_json=True)
    assert proxy.requests
    others = [request for request in proxy.requests if "run-0003" not in request]
    assert all("max-keys=1&" in request for request in others)  # asks for the service's clock


def test_a_run_whose_head_can_not_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FileStore(tmp_path / "runs")
    write_runs(store, 3, 1)
    (tmp_path / "runs/run-0001/HEAD.json").write_text("{")
    (tmp_path / "runs/without-head").mkdir()
    unreadable: dict[str, BadInput] = {}
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


def test_a_message_names_some_runs_of_many(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "runs")
    write_runs(store, 60, 1)
    words = known_runs(store)
    assert "run-0049, and 10 other folders." in words
    assert "run-0050" not in words


def test_a_place_with_too_many_other_names_is_refused(
    s3: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.state.stores.s3.store.MOST_NAMES", 10)
    monkeypatch.setattr(stores_base, "MOST_NAMES", 10)
    store = open_store(f"s3://{s3.bucket()}")
    for number in range(11):
        store.write(f"photo-{number}.jpg", b"")
    with pytest.raises(BadInput, match="more than 10 files and folders of other things"):
        runs_in(store)


class CountsHeads(FileStore):
    """A folder that counts how often a HEAD is read."""

    heads = 0

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        self.heads += key.endswith("/HEAD.json")
        return super().read_versioned(key)


def test_however_much_data_is_marked_and_deleted_each_head_is_read_once_a_step(
    tmp_path: Path, time: FakeClock
) -> None:
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
