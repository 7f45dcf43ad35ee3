"""Remember what was traced: in this process, and on disk by a digest of all that decides it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pion.files import private_cache_folder, write_atomically
from pion.untrusted import read_json

if TYPE_CHECKING:
    from pion.train.memory_trace.live_bytes import Peaks
    from pion.train.memory_trace.step import StepTrace
    from pion.train.workload import Workload

# The sources that decide what a step needs, below the package: folders and files.
SOURCES = (
    "config",
    "data/sequences.py",
    "model",
    "train/memory_trace",
    "train/objective.py",
    "train/preference.py",
    "train/preference_losses.py",
    "train/shard_rules.py",
)

# Threads that want the same trace, such as the checks of a job, wait for the first. And two traces
# can't run at the same time: what stands in for the model's functions is there for one.
_ONE_TRACE = threading.Lock()


@dataclass
class _Clock:
    """How long this process has traced. Times are of the monotonic clock."""

    seconds: float = 0.0
    since: float | None = None  # when the trace of now began


_CLOCK = _Clock()


def remembered_peaks(work: Workload, rows: int, *, recompute: bool, ranks: int = 1) -> Peaks:
    """Return what a micro-batch of so many rows needs. It is traced only if nobody has traced it.

    `ranks` is how many keep parts of the weights, if they are sharded.

    A file that can't be read or written costs the time of a trace, and nothing else. Threads may
    share the function.
    """
    key = f"{rows} {'recompute' if recompute else 'keep'}"
    if work.sharded:
        key += f" {ranks}"
    with _ONE_TRACE:
        peaks = _known(work)
        if key not in peaks:
            with _timed():
                peaks[key] = _trace(work).peaks(rows, recompute=recompute, ranks=ranks)
            _write(work, peaks)
        return peaks[key]


def traced_seconds() -> float:
    """Return how long this process has traced until now. Who waits for a network does not count
    these seconds."""
    since = _CLOCK.since
    return _CLOCK.seconds + (0.0 if since is None else time.monotonic() - since)


def forget() -> None:
    """Forget what this process remembers. Files stay."""
    for function in (_trace, _known, _file):
        function.cache_clear()


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    _CLOCK.since = time.monotonic()
    try:
        yield
    finally:
        _CLOCK.seconds, _CLOCK.since = traced_seconds(), None


# A plan for money asks in turn for the traces of a family's sizes, of two stages each. To trace one
# takes a second, and to keep it a few megabytes.
@lru_cache(maxsize=32)
def _trace(work: Workload) -> StepTrace:
    from pion.train.memory_trace.step import StepTrace  # imports much of torch

    return StepTrace(work)


@lru_cache(maxsize=256)
def _known(work: Workload) -> dict[str, Peaks]:
    from pion.train.memory_trace.live_bytes import Peaks  # imports much of torch

    try:
        record = read_json(_file(work))
        return {str(key): Peaks(*map(int, numbers)) for key, numbers in record.items()}
    except (BadInput, OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(work: Workload, known: dict[str, Peaks]) -> None:
    record = {key: dataclasses.astuple(peaks) for key, peaks in known.items()}
    with contextlib.suppress(BadInput):
        write_atomically(_file(work), json.dumps(record).encode())


@lru_cache(maxsize=256)
def _file(work: Workload) -> Path:
    digest = hashlib.sha256(f"{_code()} {work!r}".encode()).hexdigest()
    return _folder() / f"{digest[:32]}.json"


def _folder() -> Path:
    return private_cache_folder("step-memory")


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a digest of torch's version and of the sources."""
    import torch  # takes seconds

    digest = hashlib.sha256(str(torch.__version__).encode())
    package = Path(__file__).parents[2]
    for source in (package / name for name in SOURCES):
        for file in [source] if source.is_file() else sorted(source.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
