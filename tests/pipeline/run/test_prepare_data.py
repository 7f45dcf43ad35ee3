"""`pion data --prune` next to a run that prepares: what the run has found or shared, it keeps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable

import pytest

from pion.errors import PionError
from pion.untrusted import LARGEST_RECORD
from pipeline.console.messages import PrepareProgress
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.run.inputs import RunOptions, Start
from pipeline.run.preemption_stop import PreemptionStop
from pipeline.run.prepare import mend_data, prepare_data
from pipeline.run.signals import StoppingOnSignals
from pipeline.state.claim import claim_run
from pipeline.state.head import REFERENCE, SHARED, TRASH_SECONDS, data_key
from pipeline.state.run_state import RunState
from pipeline.state.shared.folder import link_files
from pipeline.state.shared.prune import delete_due, mark
from pipeline.state.stores import FileStore
from pipeline.state.stores.retry import Patience
from pipeline.state.workspace import FILES
from tests.support.corpora import save_tokenizer, sentences
from tests.support.far_store import FarStore
from tests.support.jobs import SilentDisplay
from tests.support.preference_runs import prefer_job
from tests.support.states import read, someone
from tests.support.whole_runs import write_job


class FarAway(FarStore):
    """Calls `downloading` once a download begins, and `listing` before a HEAD lists data."""

    downloading: Callable[[], None] = staticmethod(lambda: None)
    listing: Callable[[], None] = staticmethod(lambda: None)

    def read(self, key, limit=LARGEST_RECORD):
        data = super().read(key, limit)
        if key.endswith(FILES):
            self.downloading()
        return data

    def compare_and_swap(self, key, data, expected):
        if key.endswith("HEAD.json") and f"{SHARED}/".encode() in data:
            self.listing()
        return super().compare_and_swap(key, data, expected)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store without data, next to the job `tiny.yaml` with two parts of data."""
    write_job(tmp_path)
    on_machine(tmp_path, "first", monkeypatch)
    return FarAway(tmp_path / "runs")


def on_machine(folder, name, monkeypatch):
    """Go on on a machine of that name, which has copies of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / name))


def prepare(store, name, time, *overrides, say=lambda message: None, price=None):
    """Do the stage `prepare` of the job as the run `name`, on a machine of this price per hour;
    return the keys that its HEAD lists."""
    start, claim = started(store, name, time, *overrides, price=price)
    prepare_data(start, claim, say, Patience(0.0, lambda text: None, time.sleep))
    claim.release()
    return dict(read(start.run).data)


def started(store, name, time, *overrides, price=None):
    """Claim the run `name` of the job; return what its start has, and the claim."""
    job = load_job(store.folder.parent / "tiny.yaml", [f"name={name}", *overrides])
    run, owner = RunState(store, name, time.clock()), someone()
    stopping = StoppingOnSignals(SilentDisplay())
    notice = PreemptionStop(stopping, lambda text: None)
    start = Start(job, RunOptions(), digest_job(job), run, owner, stopping, 0.0, price, notice)
    return start, claim_run(run, owner, take_over=True)


def prune(folder, time):
    """Mark what no run uses, on another machine, and delete it an hour later; return what that
    was."""
    elsewhere = FarAway(folder)
    fingerprints = {entry.key.split("/")[1] for entry in elsewhere.list(f"{SHARED}/")}
    mark(elsewhere, sorted(fingerprints), time.clock())
    time.sleep(TRASH_SECONDS + 1)
    return delete_due(elsewhere, time.clock())[0]


def test_data_that_a_run_has_found_is_not_deleted_while_the_run_downloads_it(
    store, tmp_path, time, monkeypatch
):
    shared = prepare(store, "gone", time, "sft=null")
    store.delete("gone/HEAD.json")
    on_machine(tmp_path, "second", monkeypatch)
    deleted = []
    store.downloading = lambda: deleted.append(prune(store.folder, time))
    assert prepare(store, "second", time, "sft=null") == shared
    assert deleted
    assert not any(deleted)


def test_data_that_is_deleted_before_head_lists_it_is_prepared_again(store, time):
    shared = prepare(store, "gone", time, "sft=null")
    store.delete("gone/HEAD.json")
    deleted = []
    store.listing = lambda: None if deleted else deleted.append(prune(store.folder, time))
    again = prepare(store, "second", time, "sft=null")
    assert len(deleted[0]) == 1
    assert again != shared
    assert store.read(f"{again['pretrain']}/{FILES}")


def test_a_part_that_a_run_has_shared_is_not_deleted_while_the_run_prepares_the_next(store, time):
    deleted = []

    def say(message):
        begins_next = isinstance(message, PrepareProgress) and message.what == "read sft.sources.0"
        if begins_next and not deleted:
            deleted.append(prune(store.folder, time))

    data = prepare(store, "slow", time, say=say)
    assert deleted == [[]]
    assert all(store.read(f"{key}/{FILES}") for key in data.values())


def test_a_part_that_the_job_no_longer_has_is_no_longer_listed(store, time):
    both = prepare(store, "demo", time)
    assert both.keys() == {"pretrain", "sft"}
    assert prepare(store, "demo", time, "sft=null") == {"pretrain": both["pretrain"]}


def test_the_numbers_of_a_reference_stay_listed_while_the_job_has_preferences(
    store, tmp_path, time
):
    prefer_job(tmp_path)
    prepared = prepare(store, "tiny", time)
    run = RunState(store, "tiny", time.clock())
    claim = claim_run(run, someone(), take_over=True)
    bound = data_key("a" * 64, "b" * 32)
    claim.commit(lambda head: head.with_data({**head.data, REFERENCE: bound}))
    claim.release()
    assert prepare(store, "tiny", time) == prepared | {REFERENCE: bound}
    without = prepare(store, "tiny", time, "prefer=null")
    assert without.keys() == {"pretrain", "sft"}


def test_shards_to_train_on_that_are_prepared_before_stay_in_the_store(
    store, tmp_path, time, monkeypatch
):
    shared = prepare(store, "before", time)
    on_machine(tmp_path, "second", monkeypatch)
    assert prepare(store, "later", time) == shared
    here = {path.parent.name for path in (tmp_path / "second").rglob("0/*/shard_00000.npy")}
    (text,) = (tmp_path / "second").glob(f"**/{shared['pretrain']}")
    assert here == {"train", "held_out"}  # of conversations, all shards are here
    assert not list(text.glob("0/train/*.npy"))


def test_what_was_prepared_is_not_hashed_again_by_the_next_start(store, time, monkeypatch):
    digest = hashlib.file_digest

    def of_inputs(file, name):
        assert SHARED not in os.readlink(f"/proc/self/fd/{file.fileno()}").split("/")
        return digest(file, name)

    shared = prepare(store, "demo", time)
    monkeypatch.setattr(hashlib, "file_digest", of_inputs)
    assert prepare(store, "demo", time) == shared


@pytest.fixture
def mixes(tmp_path, store, time):
    """Return what prepares sources, by numbers and weights, and returns which were tokenized."""
    save_tokenizer(tmp_path / "tokenizer.json", 320)
    rows = {}
    for number in range(3):
        texts = [{"text": sentences(999 * number + i, 6)} for i in range(200)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, texts)))

    def prepared(name, weights, **changes):
        sources = [{"kind": "jsonl", "path": f"{n}.jsonl", "weight": w} for n, w in weights.items()]
        by_file = {"tokenizer": {"file": "tokenizer.json"}, "model__vocab_size": 320, "sft": None}
        write_job(tmp_path, data__sources=sources, **by_file, **changes)
        said = []
        key = prepare(store, name, time, say=said.append)["pretrain"]
        for place, number in enumerate(weights):
            shard = store.read(f"{key}/{place}/train/shard_00000.npy")
            assert rows.setdefault(number, shard) == shard or changes
        what = {m.what for m in said if isinstance(m, PrepareProgress)}
        return sorted(w.removeprefix("tokenise ") for w in what if w.startswith("tokenise"))

    return prepared


def test_a_new_weight_tokenizes_nothing_and_a_new_source_only_itself(mixes):
    assert mixes("first", {0: 1, 1: 1}) == ["0.jsonl", "1.jsonl"]
    assert mixes("second", {0: 3, 1: 1}) == []
    assert mixes("third", {2: 1, 1: 5, 0: 1}) == ["2.jsonl"]
    assert mixes("longer", {1: 5, 0: 1}, data__seq_len=48) == ["0.jsonl", "1.jsonl"]


def test_rows_that_are_deleted_or_damaged_are_tokenized_again(mixes, store, time, monkeypatch):
    def link(source, target):
        (source / "train/shard_00000.npy").unlink()  # the first file that pruning deletes
        link_files(source, target)
        prune(store.folder, time)

    mixes("first", {0: 1, 1: 1})
    store.delete("first/HEAD.json")
    monkeypatch.setattr("pipeline.run.prepare.link_files", link)
    assert mixes("second", {0: 3, 1: 1}) == ["0.jsonl", "1.jsonl"]
    assert str(store.list(f"{SHARED}/")).count("/rows-") == 2
    for entry in (e for e in store.list(f"{SHARED}/") if "/rows-" in e.key):
        store.delete(entry.key)
        store.write(entry.key.replace("-0-", "-7-").replace("-1-", "-8-"), b"")
    assert mixes("third", {0: 2, 1: 1}) == ["0.jsonl", "1.jsonl"]


def mended(store, time, say=lambda message: None):
    """Check the data of the run `tiny` as a start does; return the keys that its HEAD lists."""
    start, claim = started(store, "tiny", time)
    mend_data(start, claim, say, Patience(0.0, lambda text: None, time.sleep))
    claim.release()
    return dict(read(start.run).data)


def damage(store, key):
    """Turn the bytes of a shard around."""
    path = next((store.folder / key).glob("0/train/*.npy"))
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize("part", ["pretrain", "sft"])
def test_a_damaged_shard_of_any_stage_is_made_again_before_training(store, time, part):
    local = FileStore(store.folder)
    before, said = prepare(local, "tiny", time), []
    assert mended(local, time, said.append) == before
    assert not said
    damage(local, before[part])
    after = mended(local, time, said.append)
    assert any(f"the {part} data is prepared once more" in str(message) for message in said)
    changed = [name for name in before if after[name] != before[name]]
    assert changed == [part]
    assert after[part].split("/")[:2] == before[part].split("/")[:2]
    assert mended(local, time) == after


def test_a_damaged_shard_whose_source_has_changed_is_named_and_nothing_is_replaced(store, time):
    local = FileStore(store.folder)
    before = prepare(local, "tiny", time)
    damage(local, before["sft"])
    talks = store.folder.parent / "talks.jsonl"
    talks.write_text(talks.read_text().replace("a", "e"))
    for why in ("its sources have changed since `prepare`", "no such file"):
        with pytest.raises(PionError, match=f"has been altered(.|\n)*--redo prepare(.|\n)*{why}"):
            mended(local, time)
        talks.unlink(missing_ok=True)
    assert dict(read(RunState(local, "tiny")).data) == before
