"""A store in a folder in which something happens before or after an operation."""

from collections.abc import Callable

from pipeline.state.stores import FileStore

Hook = Callable[[str], object]


class Hooked(FileStore):
    """Calls `before` and `after` around each write, swap and delete, with "write run/HEAD.json"."""

    def __init__(self, folder):
        super().__init__(folder)
        self.before = lambda operation: None
        self.after = lambda operation: None

    def write(self, key, data):
        self.before(f"write {key}")
        super().write(key, data)
        self.after(f"write {key}")

    def compare_and_swap(self, key, data, expected):
        self.before(f"swap {key}")
        version = super().compare_and_swap(key, data, expected)
        self.after(f"swap {key}")
        return version

    def delete(self, key):
        self.before(f"delete {key}")
        super().delete(key)
        self.after(f"delete {key}")


def once(happens, at=""):
    """Return a hook that raises an error, or calls a function, at the first operation with `at`."""
    left = [happens]

    def hook(operation):
        if left and at in operation:
            first = left.pop()
            if isinstance(first, BaseException):
                raise first
            first()

    return hook
