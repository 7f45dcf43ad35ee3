"""A command in this process that may not take much memory, and how it is refused."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401 (imported under the limit, torch would not fit)

from pipeline.cli import main

# The memory that a command may add, in bytes, and the seconds after which it counts as hanging.
# What the command imports counts, and 64 MB for each thread that allocates for the first time.
MEMORY, SECONDS = 1 << 30, 60


@contextmanager
def little_memory(most: int = MEMORY) -> Iterator[None]:
    """Limit a block: MemoryError if it allocates `most` bytes, TimeoutError if it hangs."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _hangs)
    resource.setrlimit(resource.RLIMIT_AS, (size + most, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def ended(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Return the exit code of `pion arguments…` and what it printed, which is no traceback."""
    with little_memory():
        code = main([str(argument) for argument in arguments])
    printed = "".join(capsys.readouterr())
    assert "bug in Pion" not in printed, printed[-2000:]
    assert "Traceback" not in printed
    return code, printed


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return the message of `pion arguments…`, which must end with exit code 2."""
    code, printed = ended(capsys, *arguments)
    assert code == 2, printed[-2000:]
    message = printed[printed.index("error: ") :]
    assert len(message) < 20_000
    return message


def _hangs(*_: Any) -> None:
    raise TimeoutError(f"the command did not end within {SECONDS} s")
