"""prepare in pieces for a run: what is in the store while it works, and who continues it."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import nullcontext

import pytest

from pipeline.console.messages import Note, PrepareProgress, Shown
from pipeline.data import source_reading
from pipeline.data.tasks import InThisProcess
from pipeline.run import prepare as run_prepare
from pipeline.run.prepare import WAITS
from pipeline.state.head import SHARED, TRASH_SECONDS
from pipeline.state.shared import unfinished
from pipeline.state.shared.prune import delete_due
from tests.pipeline.run.test_prepare_data import on_machine, prepare
from tests.support.corpora import sentences
from tests.support.far_store import FarStore
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.whole_runs import write_job

PIECES = 15


class Stop(Exception):
    pass


class Watched(InThisProcess):
    """Counts the pieces that are encoded. Before piece number `at`, it calls `then`."""

    def __init__(self, at=-1, then=lambda: None):
        self.encoded, self._at, self._then = 0, at, then

    def map(self, work, shared, items):
        for item in items:
            if work.__name__ == "encode_piece":
                if self.encoded == self._at:
                    self._then()
                self.encoded += 1
            yield work(shared, item)


class Machines:
    """Machines that prepare the same job, each with files of its own, for one store."""

    def __init__(self, folder, time, monkeypatch):
        texts = (json.dumps({"text": sentences(i, 8)}) + "\n" for i in range(320))
        (folder / "corpus.jsonl").write_text("".join(texts))
        sources = [{"kind": "jsonl", "path": "corpus.jsonl"}]
        write_job(folder, data__sources=sources, data__shard_rows=50, sft=None)
        size = (folder / "corpus.jsonl").stat().st_size
        monkeypatch.setattr(source_reading, "LEAST_BYTES", 0)
        monkeypatch.setattr(source_reading, "PIECE_BYTES", size // PIECES)
        self.store = FarStore(folder / "runs")
        self.said: list[Shown] = []
        self._folder, self._time, self._monkeypatch = folder, time, monkeypatch

    def prepare(self, machine, tasks, run="demo", price=None):
        """Prepare on a machine; return the sha256 of each file in the store, by its name."""
        on_machine(self._folder, machine, self._monkeypatch)
        self._monkeypatch.setattr(run_prepare, "_tasks", lambda say: lambda: nullcontext(tasks))
        say = self.said.append
        key = prepare(self.store, run, self._time, say=say, price=price)["pretrain"]
        return {
            entry.key.removeprefix(key): hashlib.sha256(self.store.read(entry.key)).hexdigest()
            for entry in self.store.list(f"{key}/")
            if not entry.key.endswith(("dataset.json", "files.json"))
        }

    def pass_an_hour(self):
        """Let an hour pass, and another run end."""
        self._time.sleep(TRASH_SECONDS + 1)
        delete_due(self.store, self._time.clock())

    def uploaded(self, ending):
        """Return the keys in the store of prepared data that end like this."""
        return [e.key for e in self.store.list(f"{SHARED}/") if e.key.endswith(ending)]


@pytest.fixture
def machines(tmp_path, time, monkeypatch):
    return Machines(tmp_path, time, monkeypatch)


def test_finished_shards_are_in_the_store_while_later_pieces_are_encoded(machines):
    def look():
        shard = "train/shard_00000.json"
        wait_until(lambda: bool(machines.uploaded(shard)), "the first shard to be in the store")

    files = machines.prepare("first", Watched(8, look))
    assert "/0/train/shard_00000.npy" in files
    assert not [name for name in files if "/pieces/" in name]


def test_another_machine_continues_with_what_is_in_the_store(machines):
    def lose_the_machine():
        last = f"pieces/{11:06}.npz"
        wait_until(lambda: bool(machines.uploaded(last)), "all pieces to be in the store")
        raise Stop

    first, second, unbroken = Watched(12, lose_the_machine), Watched(), Watched()
    with pytest.raises(Stop):
        machines.prepare("first", first)
    files = machines.prepare("second", second)
    assert any(isinstance(m, Note) and "that were prepared before" in m.text for m in machines.said)
    assert first.encoded + second.encoded <= PIECES + 3
    machines.pass_an_hour()
    assert len({key.split("/")[2] for key in machines.uploaded(".npy")}) == 1
    for key in machines.uploaded(""):
        machines.store.delete(key)
    assert machines.prepare("third", unbroken, "other") == files
    assert unbroken.encoded == PIECES


class Slow(FarStore):
    """A store that takes files of prepared data once `gate` is open."""

    def __init__(self, folder):
        super().__init__(folder)
        self.gate = threading.Event()

    def write(self, key, data):
        if key.count("/") > 2:
            assert self.gate.wait(PATIENCE_SECONDS)
        super().write(key, data)


def test_while_uploads_are_slow_few_pieces_are_finished_that_are_not_in_the_store(
    machines, monkeypatch
):
    machines.store = slow = Slow(machines.store.folder)
    monkeypatch.setattr(unfinished, "MOST_WAITING", 4)
    tasks = Watched()

    def waits():
        shown = [m for m in machines.said if isinstance(m, PrepareProgress)]
        return bool(shown) and shown[-1].detail.endswith(WAITS)

    thread = threading.Thread(target=machines.prepare, args=("first", tasks))
    thread.start()
    wait_until(waits, "it to wait for the store")
    # A piece has its held-out ids, and a shard and its record. The counts and the tokenizer are
    # files, too.
    assert tasks.encoded <= 3
    slow.gate.set()
    thread.join(PATIENCE_SECONDS)
    assert tasks.encoded == PIECES
    assert machines.uploaded("files.json")


def test_nothing_is_uploaded_any_more_after_a_mistake(machines):
    def lose_it():
        raise Stop

    with pytest.raises(Stop):
        machines.prepare("first", Watched(8, lose_it))
    uploads = [t for t in threading.enumerate() if t.name == "early upload"]
    wait_until(lambda: not any(t.is_alive() for t in uploads), "uploads to end")


def test_a_damaged_shard_in_the_store_is_not_continued_with(machines):
    def damage():
        last = f"pieces/{11:06}.npz"
        wait_until(lambda: bool(machines.uploaded(last)), "all pieces to be in the store")
        (key,) = machines.uploaded("train/shard_00000.npy")
        size = len(machines.store.read(key))
        machines.store.write(key, b"x" * size)
        raise Stop

    with pytest.raises(Stop):
        machines.prepare("first", Watched(12, damage))
    files = machines.prepare("second", Watched())
    for key in machines.uploaded(""):
        machines.store.delete(key)
    assert machines.prepare("third", Watched(), "other") == files


def test_a_machine_that_is_lost_while_it_shares_finished_data_leaves_no_finished_data(machines):
    files = machines.prepare("first", Watched())
    for ending in ("files.json", "state.json", "train/shard_00001.npy"):
        for key in machines.uploaded(ending):
            machines.store.delete(key)
    machines.store.delete("demo/HEAD.json")
    assert machines.uploaded("dataset.json")
    assert machines.prepare("second", Watched(), "later") == files


def test_progress_says_what_all_will_have_cost_if_the_price_is_known(machines):
    machines.prepare("first", Watched(), price=36_000.0)
    costs = [m.dollars for m in machines.said if isinstance(m, PrepareProgress) and m.eta == 0]
    assert costs
    assert all(cost is not None and 0 < cost < 36_000 for cost in costs)
    machines.said.clear()
    for key in machines.uploaded(""):
        machines.store.delete(key)
    machines.prepare("first", Watched(), "other")
    assert all(m.dollars is None for m in machines.said if isinstance(m, PrepareProgress))
