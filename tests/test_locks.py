"""Every lock of the program, and which locks a thread may take while it holds another.

`pion run` could hang for ever because two threads took two locks in two orders. A new lock joins
the table. Best it stays in `ALONE`: while it is held, no other lock is taken, no callback is called
and nothing is written to a person.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter

from tests.paths import REPOSITORY

# By "file name". While one of these is held, the thread takes no other lock of the program.
ALONE = {
    "pion/generation/engine.py _changed",
    "pion/generation/grammar.py _lock",
    "pion/model/cuda_graph.py _capturing",
    "pipeline/console/print_and_ask.py lock",
    "pipeline/data/shard_cache.py _changed",
    "pipeline/rent/skypilot.py _changing",
    "pipeline/run/preemption_stop.py _changed",
    "pipeline/run/signals.py _lock",
    "pipeline/state/rows/metrics.py _lock",
    "pipeline/state/shared/unfinished.py _changed",
    "pipeline/state/stores/hub/store.py _guard",
    "pipeline/state/stores/s3/bucket.py _lock",
    "pipeline/training/watchdog.py _lock",
    "pipeline/workers/lifeline.py _lock",
}
# The locks of a store, which a thread takes while it holds one of those below.
STORE = {
    "pipeline/state/stores/hub/store.py _committing",
    "pipeline/state/stores/hub/store.py _guard",
    "pipeline/state/stores/s3/bucket.py _lock",
}
# By a lock that is held: the locks that may be taken.
INSIDE: dict[str, set[str]] = {
    "pion/train/memory_trace/remembered.py _ONE_TRACE": set(),
    "pipeline/live/server.py _lock": set(),
    "pipeline/state/claim.py _lock": STORE,
    "pipeline/state/claim.py _clock_lock": STORE,
    "pipeline/state/rows/metrics.py _flushing": STORE | {"pipeline/state/rows/metrics.py _lock"},
    "pipeline/state/stores/hub/store.py _committing": {"pipeline/state/stores/hub/store.py _guard"},
}
KINDS = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Barrier"}


def locks() -> set[str]:
    """Return the locks that the code makes, by file and name."""
    found = set()
    for package in ("pion", "pipeline"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "threading" in text or "multiprocessing" in text or "asyncio" in text:
                found |= {f"{path.relative_to(REPOSITORY)} {name}" for name in made_in(text)}
    return found


def made_in(text: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign):
            targets, values = node.targets[0], node.value
            pairs = (
                zip(targets.elts, values.elts)
                if isinstance(targets, ast.Tuple) and isinstance(values, ast.Tuple)
                else [(targets, values)]
            )
            names |= {
                target.attr if isinstance(target, ast.Attribute) else ast.unparse(target)
                for target, value in pairs
                if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in KINDS
            }
    return names


def test_each_lock_is_in_the_table() -> None:
    assert locks() == ALONE | set(INSIDE)


def test_no_two_locks_are_taken_in_two_orders() -> None:
    TopologicalSorter(INSIDE).prepare()  # raises CycleError
    assert all(inner in ALONE or inner in INSIDE for each in INSIDE.values() for inner in each)
