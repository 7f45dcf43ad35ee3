"""A store with many small runs, or with a long one or one that has moved often, to count what
commands ask of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pipeline.state.head import TRASH_SECONDS, Head
from pipeline.state.rows.join import PARTS, Joiner
from pipeline.state.stores import Store
from tests.support.rented_run import RentedRun
from tests.support.states import an_entry, someone


def write_runs(store: Store, runs: int, objects: int) -> list[str]:
    """Write runs of that many objects each, of which HEAD is one; return their names."""
    names = [f"run-{number:04d}" for number in range(runs)]

    def write(number: int) -> None:
        head = Head().claimed(someone(), float(number)).with_checkpoint(an_entry(10, at=number))
        store.write(f"{names[number]}/HEAD.json", head.to_json())
        for segment in range(objects - 1):
            store.write(f"{names[number]}/metrics/pretrain/1/{segment:06d}.jsonl", b"")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(runs)))
    store.flush()
    return names


def write_long_run(store: Store, steps: int) -> RentedRun:
    """Write a run with a row for each of its steps, ten a second, as its owner does: a file for
    every hundred rows, which are joined now and then."""
    run = RentedRun(store, f"long-{steps}", steps=steps, seconds=0.1, flush_steps=100)
    run.rent()
    assert run.claim is not None
    folder = run.state.key("metrics/pretrain/")
    joiner = Joiner(store, folder, run.claim.epoch, run.time.clock(), lambda: None)
    while run.step < steps:
        run.train(min(100 * PARTS, steps - run.step))
        while joiner.step():
            pass
    return run


def write_moved_run(store: Store, moves: int, steps: int) -> RentedRun:
    """Write a run on so many machines with `steps` steps on each. Each machine writes two files of
    events, and joins what the ones before it have written."""
    run = RentedRun(store, f"moved-{moves}", steps=moves * steps, flush_steps=50)
    folder = run.state.key("metrics/pretrain/")
    for _ in range(moves):
        run.rent()
        assert run.claim is not None
        events = run.events()
        events.append("phase", name="first step", seconds=5.0, total=True)
        events.flush()
        joiner = Joiner(store, folder, run.claim.epoch, run.time.clock(), lambda: None)
        while joiner.step():
            pass
        run.train(steps)
        run.save()
        run.time.sleep(TRASH_SECONDS)
        while joiner.step():
            pass
    return run
