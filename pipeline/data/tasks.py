"""Doing the same work with many items, here or by many processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Tasks(Protocol):
    """Does the same work with many items, side by side."""

    def map(
        self,
        work: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Iterable[Item],
    ) -> Iterator[Result]:
        """Yield `work(shared, item)` of each item, in the order of the items.

        `work` is a function of a module. Raises the PionError that `work` raises.
        """


class InThisProcess:
    """Does the work here, one item after the other."""

    def map(
        self,
        work: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Iterable[Item],
    ) -> Iterator[Result]:
        """See `Tasks`."""
        return (work(shared, item) for item in items)


@dataclass(frozen=True)
class WithPauses:
    """Lets `tasks` do the work. Each result is yielded once `wait` has returned."""

    tasks: Tasks
    wait: Callable[[], None]

    def map(
        self,
        work: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Iterable[Item],
    ) -> Iterator[Result]:
        """See `Tasks`."""
        for result in self.tasks.map(work, shared, items):
            self.wait()
            yield result
