"""Workers make room for a group of another size while the store is down."""

from pipeline.state.stores import FileStore
from pipeline.training import saving
from tests.faults.faulty_store import FaultyStore, fail
from tests.faults.light_job import Process, read_head, unbroken_weights, wrong_in


def test_a_node_that_comes_while_the_store_is_down_does_not_end_the_run(
    tmp_path, time, monkeypatch
):
    monkeypatch.setattr(saving, "Clock", time.clock)
    store = FaultyStore(FileStore(tmp_path / "runs"))
    trained = []
    down_until = []

    def a_node_comes():
        if len(trained) == 3 and not down_until:
            down_until.append(time.time + 600)
        return len(trained) == 3

    def look():
        if down_until and time.time < down_until[0]:
            fail("an operation")

    store.look = look
    group = Process(store, tmp_path / "cache", clock=time.clock(), is_resized=a_node_comes)
    group.between_steps = lambda: trained.append(None)
    group.go()
    head = read_head(store)
    assert [entry.step for entry in head.checkpoints][:1] == [3]
    assert head.owner is not None, "the next group's driver would find the run without an owner"
    assert head.failed_attempts <= 0

    published = []
    next_group = Process(
        store, tmp_path / "cache", published.append, clock=time.clock(), owner=group.owner
    )
    next_group.go()
    assert next_group.restored["pretrain"] == 3
    assert wrong_in(store, read_head(store)) == []
    assert unbroken_weights()["sft"][0].encode() in published[0]
