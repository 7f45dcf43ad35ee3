"""A removal may die anywhere, and next to a start: no run is continued without its files."""

import shutil

import pytest

from pion.errors import BadInput
from pipeline.state.claim import claim_run
from pipeline.state.head import BeingRemoved
from pipeline.state.removal import find_removable, remove
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.faults.explore import explore
from tests.faults.faulty_store import Crash, FaultyStore
from tests.support.light_run import light_run
from tests.support.states import an_entry, list_checkpoint, read, someone

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_removal_that_ends_anywhere_is_finished_by_another(when, tmp_path):
    whole = tmp_path / "whole"
    light_run(FileStore(whole))
    counted = FaultyStore(FileStore(shutil.copytree(whole, tmp_path / "counted")))
    remove(find_removable(RunState(counted, "demo")))
    files = {entry.key for entry in FileStore(whole).list("demo/")}
    assert len(counted.operations) > len(files)
    for at in range(1, len(counted.operations) + 1):
        store = FileStore(shutil.copytree(whole, tmp_path / str(at)))
        run = RunState(store, "demo")
        with pytest.raises(Crash):
            remove(find_removable(RunState(FaultyStore(store, at, when), "demo")))
        present = {entry.key for entry in store.list("demo/")}
        try:
            assert present == (files if run.read() else set())
        except BeingRemoved:
            with pytest.raises(BadInput, match=r"is being removed.*pion rm"):
                claim_run(run, someone())
            assert present <= files
        if present:
            remove(find_removable(run))
        assert not store.list("demo/")
        shutil.rmtree(store.folder)


FILE = "demo/checkpoints/pretrain/1-1/model.safetensors"


def a_run(world):
    """Put a released run with a checkpoint of one file into the store."""
    claim = claim_run(RunState(world.store, "demo", world.clock()), someone(), take_over=True)
    world.store.write(FILE, b"weights")
    list_checkpoint(claim, an_entry(1))
    claim.release()


def whole(world):
    """Check that what HEAD lists is there."""
    try:
        head = RunState(world.store, "demo").read()
    except BeingRemoved:
        return
    assert head is None or not head.checkpoints or FILE in world.store.objects


def test_one_of_a_removal_and_a_start_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    outcomes = set()

    def removes(world, store):
        remove(find_removable(RunState(store, "demo", world.clock())))
        world.done["removed"] = True

    def starts(world, store):
        run = RunState(store, "demo", world.clock())
        world.done["epoch"] = claim_run(run, someone()).epoch

    def one_has_won(world):
        whole(world)
        outcomes.add((world.done.get("removed", False), epoch := world.done.get("epoch")))
        if epoch is not None:  # what a start has claimed stays claimed
            assert read(RunState(world.store, "demo")).epoch == epoch

    explore(
        a_run,
        (removes, starts),
        whole,
        one_has_won,
        stops_at=("HEAD.json",),
        fates=("dies after",),
        may_fail=BadInput,
    )
    # The start lost; it won; it came after the removal, and began a new run.
    assert {(True, None), (False, 2), (True, 1)} <= outcomes
