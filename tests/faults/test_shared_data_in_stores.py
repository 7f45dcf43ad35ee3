"""Shared data in real stores: whoever dies at whatever operation, the next process has its data.

What a HEAD lists is never deleted, and what is left over is deleted by later prunes.
test_shared_data.py puts the operations of several processes into every order.
"""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pipeline.state.claim import claim_run
from pipeline.state.find_run import runs_in
from pipeline.state.head import SHARED, TRASH_SECONDS, data_key
from pipeline.state.run_state import RunState
from pipeline.state.shared.find_or_prepare import confirm, find_or_prepare
from pipeline.state.shared.folder import Overtaken, complete
from pipeline.state.shared.prune import delete_due, mark
from pipeline.state.shared.records import Writer, keys_in_use, read_state
from pipeline.state.stores import FileStore, Store, StoreError
from pipeline.state.workspace import FILES
from tests.faults.faulty_store import Crash, FaultyStore, can_be_torn, crash, fail
from tests.support.clock import FakeClock
from tests.support.hub_server import USER, hub_server
from tests.support.states import someone

FINGERPRINT = "f" * 64
CONTENT = {"0/train/shard_00000.npy": b"rows", "tokenizer.json": b"ids", "dataset.json": b"{}"}


@dataclass(frozen=True)
class World:
    """What outlives a process: a store, of which each `open` is another process's view; finished
    `files`; and the time."""

    open: Callable[[], Store]
    files: Path
    time: FakeClock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Let a silent owner count as dead after one look."""
    for name in ("SILENCE_SECONDS", "COMMIT_SILENCE_SECONDS"):
        monkeypatch.setattr(f"pipeline.state.run_state.{name}", 1.0)


@pytest.fixture
def files(tmp_path):
    for name, content in CONTENT.items():
        path = tmp_path / "prepared" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "prepared"


@pytest.fixture
def in_folders(tmp_path, files, time, monkeypatch):
    """Any number of empty stores in folders, without the time that fsync takes."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

    def world(number):
        return World(lambda: FileStore(tmp_path / str(number) / "runs"), files, time)

    return map(world, itertools.count())


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.soak), "hub"])
def far_away(request, tmp_path, files, time, monkeypatch):
    """Any number of empty stores in a bucket or on the Hub, whose clock is `time`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from pipeline.state.stores.hub.store import HubStore
    from pipeline.state.stores.s3.store import S3Store

    for kind in (S3Store, HubStore):
        monkeypatch.setattr(kind, "service_time", lambda _: time.time)
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        s3.use(monkeypatch)
        bucket = s3.bucket()

        client = S3Store(bucket)._bucket.client  # to connect for each process takes longer

        def in_bucket(number):
            def open_():
                store = S3Store(bucket, f"runs-{number}")
                store._bucket._client = client
                return store

            return World(open_, files, time)

        yield map(in_bucket, itertools.count())
        return
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "hf")

        def on_hub(number):
            hub.add_repo(f"{USER}/runs-{number}")
            return World(lambda: HubStore(f"{USER}/runs-{number}"), files, time)

        yield map(on_hub, itertools.count())


# ---------------------------------------------------------------- processes


def using(name, *, again=False):
    """Return a process of the run `name` that ends once the run may use the data."""

    def process(world, store):
        clock, owner = world.time.clock(), someone()
        run = RunState(store, name, clock)
        claim = retried(lambda: claim_run(run, owner, take_over=True))

        def waiting(writer, seconds):
            assert seconds < TRASH_SECONDS, "this process waits for nobody"

        while True:
            folder = begun = retried(
                lambda: find_or_prepare(run, FINGERPRINT, claim.epoch, owner, waiting, again=again)
            )
            if isinstance(begun, Writer):
                try:
                    folder = retried(lambda writer=begun: finish(world, store, writer))
                except Overtaken:
                    continue
            assert isinstance(folder, str)
            use = {"pretrain": data_key(FINGERPRINT, folder)}
            retried(partial(claim.commit, lambda head, use=use: head.with_data(use)))
            if retried(partial(confirm, store, FINGERPRINT, folder)):
                retried(claim.release)
                return folder

    return process


def finish(world, store, writer):
    """Share the finished files as this writer."""
    run = RunState(store, writer.run, world.time.clock())
    return complete(run, FINGERPRINT, writer, world.files, ("text",))


def retried(work):
    """Call `work` again if the store has failed once, as `Patience` does."""
    try:
        return work()
    except StoreError:
        return work()


def prune(world, store):
    """Mark what no run uses, and delete what is due an hour later."""
    mark(store, [FINGERPRINT], world.time.clock())
    world.time.sleep(TRASH_SECONDS + 1)
    delete_due(store, world.time.clock())
    store.flush()


def forgotten(world, name):
    """Delete a run's HEAD, as somebody does who deletes the run's folder."""
    store = world.open()
    store.delete(f"{name}/HEAD.json")
    store.flush()


def prepared_and_forgotten(world):
    """Begin with data that only a deleted run has used."""
    using("gone")(world, world.open())
    forgotten(world, "gone")


# ---------------------------------------------------------------- what must be true


def stored_folders(store):
    keys = (entry.key.split("/") for entry in store.list(f"{SHARED}/"))
    return {"/".join(parts[:3]) for parts in keys if len(parts) > 3}


def check_safe(world):
    """Check that every folder that a HEAD lists is complete."""
    store = world.open()
    for key in keys_in_use(runs_in(store)):
        if store.local_path(key) is None:
            assert store.read(f"{key}/{FILES}")
        for name, content in CONTENT.items():
            assert store.read(f"{key}/{name}") == content


def check_shared(world):
    """Check that another run has the data, and that a prune leaves it to this run."""
    folder = using("second")(world, world.open())
    prune(world, world.open())
    check_safe(world)
    assert data_key(FINGERPRINT, str(folder)) in stored_folders(world.open())


def check_ends_well(world):
    """Check that another run and this run have the data, and that prunes delete all the rest."""
    folders = {str(using(name)(world, world.open())) for name in ("second", "first")}
    check_safe(world)
    for _ in range(2):
        prune(world, world.open())
    check_safe(world)
    store = world.open()
    state, _ = read_state(store, FINGERPRINT)
    assert state.folder in folders
    assert (state.writer, state.unneeded) == (None, ())
    assert stored_folders(store) == {data_key(FINGERPRINT, folder) for folder in folders}
    for name in ("first", "second"):
        forgotten(world, name)
        prune(world, world.open())
        check_safe(world)
    assert stored_folders(world.open()) == set()


def dies_everywhere(
    worlds, before, process, when, check, counts=lambda operation: True, happen=crash
):
    """Let a process die at each of its operations that counts; return these operations."""
    world = next(worlds)
    before(world)
    unbroken = FaultyStore(world.open())
    process(world, unbroken)
    operations = [
        (number, operation)
        for number, operation in enumerate(unbroken.operations, 1)
        if counts(operation) and (when != "halfway" or can_be_torn(operation))
    ]
    for number, _ in operations:
        world = next(worlds)
        before(world)
        with contextlib.suppress(Crash):
            process(world, FaultyStore(world.open(), number, when, happen))
        check_safe(world)
        check(world)
    return [operation.split()[0] for _, operation in operations]


def changes(operation):
    return operation.startswith(("write", "swap"))


def begins(world, store, name, *, again=False):
    """Return the record of a process of the run `name` that has begun to prepare the data."""
    clock, owner = world.time.clock(), someone()
    run = RunState(store, name, clock)
    claim_run(run, owner, take_over=True)
    begun = find_or_prepare(run, FINGERPRINT, 1, owner, lambda writer, seconds: None, again=again)
    assert isinstance(begun, Writer)
    return begun


def used_by_first(world):
    """Begin with data that the run "first" uses."""
    using("first")(world, world.open())


def left_behind(world):
    """Begin with unused data, and with a folder that a dead process has not finished."""
    prepared_and_forgotten(world)
    store = world.open()
    begun = begins(world, store, "gone", again=True)
    store.write(f"{data_key(FINGERPRINT, begun.folder)}/tokenizer.json", b"ids")
    store.flush()


def nothing(world):
    """Begin with an empty store."""


NEW = pytest.param(nothing, using("first"), id="new data")
THERE = pytest.param(prepared_and_forgotten, using("first"), id="data that is there")
AGAIN = pytest.param(used_by_first, using("first", again=True), id="data prepared again")
PRUNED = pytest.param(left_behind, prune, id="pruned data")


# Dying after a change leaves the same store as dying before the next change.


@pytest.mark.parametrize("when", ["halfway", "after"])
@pytest.mark.parametrize(("before", "process"), [NEW, THERE, AGAIN, PRUNED])
def test_a_process_may_die_at_every_operation_on_a_folder(in_folders, before, process, when):
    died_at = dies_everywhere(in_folders, before, process, when, check_ends_well)
    assert "swap" in died_at
    assert ("delete" in died_at) == (process is prune and when != "halfway")


def test_a_process_may_die_after_every_write_and_swap_far_away(far_away):
    died_at = dies_everywhere(far_away, nothing, using("first"), "after", check_shared, changes)
    assert len(died_at) > 2


@pytest.mark.soak
@pytest.mark.parametrize(("before", "process"), [NEW, THERE, AGAIN, PRUNED])
def test_a_process_may_die_at_every_operation_far_away(far_away, before, process):
    assert dies_everywhere(far_away, before, process, "after", check_ends_well)


# ---------------------------------------------------------------- slow, but alive


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("before", "process"), [NEW, THERE, AGAIN])
def test_what_a_failing_store_may_have_done_is_done_once(in_folders, before, process, when):
    def one_folder(world):
        state, _ = read_state(world.open(), FINGERPRINT)
        (users,) = (runs for key, runs in keys_in_use(runs_in(world.open())).items())
        assert data_key(FINGERPRINT, str(state.folder)) in stored_folders(world.open())
        assert users == ["first"]
        assert state.writer is None

    dies_everywhere(in_folders, before, process, when, one_folder, happen=fail)


def test_the_first_who_finishes_wins_whoever_is_the_writer_by_then(in_folders):
    world = next(in_folders)
    store = world.open()
    slow = begins(world, store, "slow")
    quick = begins(world, store, "quick")  # it waits for a sign of life, and takes over
    assert quick.folder != slow.folder
    assert finish(world, store, slow) == slow.folder
    assert finish(world, store, quick) == slow.folder


def test_data_prepared_again_by_a_silent_process_is_not_what_it_replaces(in_folders):
    world = next(in_folders)
    store = world.open()
    old = using("first")(world, store)
    slow = begins(world, store, "slow", again=True)
    begins(world, store, "other", again=True)
    assert finish(world, store, slow) == slow.folder != old


def test_a_folder_that_was_ever_to_be_deleted_is_never_shared(in_folders):
    world = next(in_folders)
    store = world.open()
    asleep = begins(world, store, "asleep")
    store.write(f"{data_key(FINGERPRINT, asleep.folder)}/tokenizer.json", b"ids")
    world.time.sleep(TRASH_SECONDS + 1)
    mark(store, [FINGERPRINT], world.time.clock())
    for _ in range(2):
        with pytest.raises(Overtaken, match="showed no sign of life"):
            finish(world, store, asleep)
        world.time.sleep(TRASH_SECONDS + 1)
        delete_due(store, world.time.clock())
    assert using("asleep")(world, store) != asleep.folder
    check_safe(world)


def test_ctrl_c_while_waiting_leaves_the_data_to_who_prepares_it(in_folders):
    world = next(in_folders)
    store = world.open()
    writer = begins(world, store, "writer")

    def interrupt():
        raise KeyboardInterrupt

    world.time.during_sleep = interrupt
    with pytest.raises(KeyboardInterrupt):
        begins(world, store, "waiting")
    world.time.during_sleep = lambda: None
    assert read_state(store, FINGERPRINT)[0].writer == writer
    assert finish(world, store, writer) == writer.folder
    assert using("waiting")(world, store) == writer.folder


# ---------------------------------------------------------------- folders


def test_the_data_of_a_run_whose_folder_is_a_link_is_not_deleted(in_folders, tmp_path):
    world = next(in_folders)
    store = world.open()
    used_by_first(world)
    (store.folder / "first").rename(tmp_path / "another-disk")
    (store.folder / "first").symlink_to(tmp_path / "another-disk")
    prune(world, store)
    assert RunState(store, "first").read() is not None
    check_safe(world)


def test_hidden_files_of_an_interrupted_process_are_deleted_too(in_folders):
    world = next(in_folders)
    store = world.open()
    prepared_and_forgotten(world)
    (folder,) = stored_folders(store)
    (store.folder / folder / ".tokenizer.json.part").write_bytes(b"ids")
    prune(world, store)
    assert not (store.folder / folder).exists()
