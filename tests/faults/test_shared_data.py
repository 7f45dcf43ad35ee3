"""Runs that begin to use shared data while it is prepared, marked or deleted: in every order.

Whatever the order, and whoever dies: a run that may use a folder finds all its files there, and a
run that starts afterwards gets data.
"""

import itertools
from functools import partial
from unittest.mock import patch

import pytest

from pipeline.state.head import SHARED, TRASH_SECONDS, Head, data_key
from pipeline.state.run_state import RunState
from pipeline.state.shared import prune
from pipeline.state.shared.find_or_prepare import confirm, find_or_prepare
from pipeline.state.shared.folder import Overtaken, complete
from pipeline.state.shared.records import Writer, read_state
from tests.faults.explore import explore
from tests.support.states import someone

FINGERPRINT = "f" * 64
CONTENT = b"rows"
DECIDING = ("/state.json", "/HEAD.json")
DEATHS = ("dies", "dies after")
# Which deaths are tried, which keys have operations that are put into different orders, and how
# many states are looked at (None: all).
ONE_DIES = pytest.param((DEATHS, DECIDING, 120), id="one dies")
ALL = pytest.param((DEATHS, ("",), None), id="all", marks=pytest.mark.soak)


@pytest.fixture(autouse=True)
def quick(monkeypatch, no_fsync):
    """Let a silent owner count as dead after one look: also one that is only slow."""
    monkeypatch.setattr("pipeline.state.run_state.SILENCE_SECONDS", 1.0)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Return a folder with prepared data. Every process has an empty cache."""
    caches = (tmp_path / f"cache-{number}" for number in itertools.count())
    monkeypatch.setattr("pipeline.state.workspace.cache_folder", lambda: next(caches))
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "dataset.json").write_bytes(CONTENT)
    return folder


def starter(name, files, *, again=False):
    """Return a process of the run `name` that needs the data."""

    def work(world, store):
        clock, owner = world.clock(), someone(session=name)
        run = RunState(store, name, clock)
        commit(run, lambda head: head.claimed(owner, clock.now()))
        while True:
            begun = find_or_prepare(
                run, FINGERPRINT, 1, owner, lambda writer, seconds: None, again=again
            )
            try:
                folder = (
                    complete(run, FINGERPRINT, begun, files, ("text",))
                    if isinstance(begun, Writer)
                    else begun
                )
            except Overtaken:
                continue
            data = {"pretrain": data_key(FINGERPRINT, folder)}
            commit(run, lambda head, data=data: head.with_data(data))
            if confirm(store, FINGERPRINT, folder):
                world.done[name] = folder
                return

    return work


def commit(run, change):
    """Change HEAD, as the owner of a run does."""
    head, version = run.read_versioned()
    assert run.swap(change(head or Head()), version, "")


def pruner(world, store):
    """Mark all shared data, and delete what is due."""
    prune.mark(store, [FINGERPRINT], world.clock())
    prune.delete_due(store, world.clock())


def pruner_for_an_hour(world, store):
    """Mark all shared data, and delete it once that is due."""
    prune.mark(store, [FINGERPRINT], world.clock())
    world.now += TRASH_SECONDS + 1
    prune.delete_due(store, world.clock())


def deleter(world, store):
    """Delete what is due."""
    prune.delete_due(store, world.clock())


def empty(world):
    """Begin with an empty store."""


def unused(files, world):
    """Begin with data that no run uses."""
    starter("gone", files)(world, world.store)
    world.store.delete("gone/HEAD.json")
    world.done.clear()


def due(files, world):
    """Begin with data that was marked an hour ago, and that no run uses."""
    unused(files, world)
    prune.mark(world.store, [FINGERPRINT], world.clock())
    world.now += TRASH_SECONDS + 1


def intact(world):
    """Check that every run that may use the data has all of it."""
    for folder in world.done.values():
        key = f"{SHARED}/{FINGERPRINT}/{folder}"
        assert world.store.read(f"{key}/dataset.json") == CONTENT
        assert world.store.read(f"{key}/files.json")


def ends_well(files, world):
    """Check that pruning later takes nothing from a run, and that a later run shares what a run
    uses."""
    used = set(world.done.values())
    for _ in range(2):
        pruner(world, world.store)
        intact(world)
        world.now += 30 * TRASH_SECONDS
    with patch("pipeline.state.shared.find_or_prepare.new_folder", lambda: "a" * 32):
        starter("late", files)(world, world.store)
    intact(world)
    assert not used or world.done["late"] in used


@pytest.mark.parametrize("harm", [pytest.param(((), DECIDING, 120), id="nobody"), ONE_DIES, ALL])
@pytest.mark.parametrize(("prepare", "deletes"), [(unused, pruner_for_an_hour), (due, deleter)])
def test_a_run_that_starts_while_its_data_is_marked_or_deleted_has_it_or_makes_it(
    prepare, deletes, harm, files
):
    works = (starter("one", files), deletes)
    states = explore(
        partial(prepare, files),
        works,
        intact,
        partial(ends_well, files),
        fates=harm[0],
        stops_at=harm[1],
        most=harm[2],
    )
    assert states > 30


@pytest.mark.parametrize("harm", [ONE_DIES, ALL])
def test_two_runs_that_start_at_once_end_with_one_folder(harm, files):
    def one_folder(world):
        if world.done.keys() == {"one", "two"}:
            assert read_state(world.store, FINGERPRINT)[0].folder in world.done.values()
        ends_well(files, world)

    works = (starter("one", files), starter("two", files))
    states = explore(
        empty, works, intact, one_folder, fates=harm[0], stops_at=harm[1], most=harm[2]
    )
    assert states > 100
