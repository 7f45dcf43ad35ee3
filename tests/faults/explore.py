"""All orders in which processes can do their store operations, and die between them.

Each order is tried from the start. Orders that lead to the same state are continued once: the same
content of the store, and the same answers to each process.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from pipeline.state.stores import StoreError
from pipeline.state.stores.base import Data
from pipeline.state.stores.clock import Clock
from tests.faults.faulty_store import Crash
from tests.faults.simulation import Fate, MemoryStore, OneAtATime, SteppedStore

T = TypeVar("T")
# A move: which process does its next operation, and what happens to it.
Move = tuple[int, Fate]


class HashedStore(MemoryStore):
    """A store in memory whose versions are hashes, as those of a folder are.

    So content that comes back has its former version.
    """

    def __init__(self) -> None:
        super().__init__(lambda key, old, new: None)

    def write(self, key: str, data: Data) -> None:
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        self.objects[key] = content, hashlib.sha256(content).hexdigest()[:16]


class Told(SteppedStore):
    """Remembers every answer that its process got. Operations on other keys than those that end in
    `stops_at` happen without waiting for a move."""

    def __init__(self, inner: MemoryStore, stops_at: tuple[str, ...]) -> None:
        super().__init__(inner, [])
        self.told: list[str] = []
        self._stops_at = stops_at

    def do(self, action: str, key: str, call: Callable[[], T]) -> T:
        if not key.endswith(self._stops_at):
            return call()
        try:
            answer = super().do(action, key, call)
        except Exception as error:
            self.told.append(f"{key}: {type(error).__name__}")
            raise
        self.told.append(f"{key}: {answer!r}")
        return answer


@dataclass
class World:
    """One try: a store in memory, and the processes.

    `now` is the date, in Unix seconds, and `waited` are seconds of waiting. Waiting does not change
    the date, so that orders which differ only in waiting lead to the same state.
    """

    store: MemoryStore
    processes: list[Told] = field(default_factory=list)
    now: float = 1e6
    waited: float = 0.0
    done: dict[str, Any] = field(default_factory=dict)

    def clock(self) -> Clock:
        """Return a clock on which waiting takes no time."""

        def sleep(seconds: float) -> None:
            self.waited += seconds

        return Clock(lambda: self.now, lambda: self.waited, sleep)

    def errors(self) -> list[BaseException]:
        """Return what processes ended with, apart from their deaths."""
        ended = [process.error for process in self.processes]
        return [error for error in ended if error is not None and not isinstance(error, Crash)]


Work = Callable[[World, Told], None]
Check = Callable[[World], None]


def explore(
    prepare: Check,
    works: Sequence[Work],
    check: Check,
    at_end: Check,
    *,
    stops_at: tuple[str, ...] = ("",),
    fates: Sequence[Fate] = (),
    most: int | None = None,
    may_fail: type[Exception] = StoreError,
) -> int:
    """Try all orders of the processes `works` after `prepare`; return how many states there were.

    `check` is called in every state, and `at_end` once all processes have ended. In each order, at
    most one operation has one of `fates`; the others are done. Only operations on keys that end in
    one of `stops_at` are put into different orders; the others follow them at once. After `most`
    states, which are drawn at random but the same each time, the search ends.
    """
    begun = _begin(prepare)
    seen: set[Any] = set()
    orders: list[tuple[Move, ...]] = [()]
    draw = random.Random(0)
    while orders and len(seen) != most:
        order = orders.pop(draw.randrange(len(orders)) if most else -1)
        world = _try(begun, works, order, stops_at)
        try:
            state = (
                tuple(sorted((key, data) for key, (data, _) in world.store.objects.items())),
                tuple(tuple(process.told) for process in world.processes),
                tuple(process.ended for process in world.processes),
                any(fate != "done" for _, fate in order),
            )
            if state in seen:
                continue
            seen.add(state)
            for error in world.errors():
                assert isinstance(error, may_fail), (order, error)
            check(world)
            alive = [n for n, process in enumerate(world.processes) if not process.ended]
            if not alive:
                at_end(world)
            harmed = any(fate != "done" for _, fate in order)
            for number in alive:
                for fate in ("done", *(() if harmed else fates)):
                    orders.append((*order, (number, fate)))
        finally:
            _end(world)
    return len(seen)


def _begin(prepare: Check) -> World:
    """Return the world in which each order begins."""
    world = World(HashedStore())
    with _named_folders("prepared"):
        prepare(world)
    return world


@contextlib.contextmanager
def _named_folders(kind: str) -> Iterator[None]:
    """Give shared folders names that are the same in each try, and do without threads."""
    names = (hashlib.md5(f"{kind} {number}".encode()).hexdigest() for number in itertools.count())
    with (
        patch("pipeline.state.shared.find_or_prepare.new_folder", lambda: next(names)),
        patch("pipeline.state.workspace.ThreadPoolExecutor", OneAtATime),
    ):
        yield


def _try(
    begun: World, works: Sequence[Work], order: Sequence[Move], stops_at: tuple[str, ...]
) -> World:
    world = World(HashedStore(), now=begun.now, waited=begun.waited, done=dict(begun.done))
    world.store.objects.update(begun.store.objects)
    with _named_folders("tried"):
        for work in works:
            process = Told(world.store, stops_at)
            world.processes.append(process)
            process.start(lambda work=work, process=process: work(world, process))
        for number, fate in order:
            world.processes[number].step(fate)
    return world


def _end(world: World) -> None:
    """Let the threads of processes that have not ended end."""
    for process in world.processes:
        while not process.ended:
            process.step("dies")
