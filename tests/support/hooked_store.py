"""A store in a folder in which something happens before or after an operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.state.stores import FileStore
from pipeline.state.stores.base import Data

Hook = Callable[[str], object]


class Hooked(FileStore):
    """Calls `before` and `after` around each write, swap and delete, with "write run/HEAD.json"."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.before: Hook = lambda operation: None
        self.after: Hook = lambda operation: None

    def write(self, key: str, data: Data) -> None:
        self.before(f"write {key}")
        super().write(key, data)
        self.after(f"write {key}")

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        self.before(f"swap {key}")
        version = super().compare_and_swap(key, data, expected)
        self.after(f"swap {key}")
        return version

    def delete(self, key: str) -> None:
        self.before(f"delete {key}")
        super().delete(key)
        self.after(f"delete {key}")


def once(happens: BaseException | Callable[[], object], at: str = "") -> Hook:
    """Return a hook that raises an error, or calls a function, at the first operation with `at`."""
    left = [happens]

    def hook(operation: str) -> None:
        if left and at in operation:
            first = left.pop()
            if isinstance(first, BaseException):
                raise first
            first()

    return hook
