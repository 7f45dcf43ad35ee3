"""A store with many small runs, to count what commands ask of it."""

from concurrent.futures import ThreadPoolExecutor

from pipeline.state.head import Head
from tests.support.states import an_entry, someone


def write_runs(store, runs, objects):
    """Write runs of that many objects each, of which HEAD is one; return their names."""
    names = [f"run-{number:04d}" for number in range(runs)]

    def write(number):
        head = Head().claimed(someone(), float(number)).with_checkpoint(an_entry(10, at=number))
        store.write(f"{names[number]}/HEAD.json", head.to_json())
        for segment in range(objects - 1):
            store.write(f"{names[number]}/metrics/pretrain/1/{segment:06d}.jsonl", b"")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(runs)))
    store.flush()
    return names
