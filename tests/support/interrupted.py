"""A preparation that is interrupted at one of its marks."""

from collections.abc import Callable


def ends_at(call: int) -> Callable[[str], None]:
    """Return a stand-in for `mark` whose call of this number is interrupted."""
    calls = iter(range(10**6))

    def mark(name: str) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt

    return mark
