"""Wait for a condition. If it never holds, fail with what was expected and what was seen."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

# Seconds, far above what anything takes on a machine with two cores and a load of 20: Ray alone
# takes more than a minute to start there. A test that passes never waits this long.
PATIENCE_SECONDS = 300.0
# Seconds for a whole program, such as a run or a build.
LONG_SECONDS = 600.0


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    *,
    seconds: float = PATIENCE_SECONDS,
    every: float = 0.02,
) -> None:
    """Poll `condition` until it holds; fail after `seconds`, with `what` was expected.

    `what` may be a function that is called on failure, for example to read a log.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            words = what() if callable(what) else what
            raise AssertionError(f"waited {seconds:g} s for this, and it never came: {words}")
        time.sleep(every)


def read_until(
    process: subprocess.Popen[str], text: str, *, lines: int = 1, seconds: float = PATIENCE_SECONDS
) -> str:
    """Read the output of `process` until that many lines contain `text`; return what was read."""
    seen = []
    for line in lines_of(process, seconds):
        seen.append(line)
        lines -= text in line
        if lines == 0:
            return "".join(seen)
    raise AssertionError(f"{process.args} ended, and never said {text!r}:\n{''.join(seen)}")


def rest_of(process: subprocess.Popen[str], *, seconds: float = PATIENCE_SECONDS) -> str:
    """Wait until `process` ends; return its unread output."""
    if process.stdin is not None:
        process.stdin.close()
    rest = "".join(lines_of(process, seconds))
    process.wait(seconds)
    return rest


def lines_of(process: subprocess.Popen[str], seconds: float) -> Iterator[str]:
    """Yield the lines that `process` prints until it ends; after `seconds`, kill it and fail."""
    assert process.stdout is not None
    assert process.stderr is None, "a full pipe that nobody reads would stop it"
    too_late = threading.Event()

    def give_up() -> None:
        too_late.set()
        kill_tree(process.pid)

    timer = threading.Timer(seconds, give_up)
    timer.start()
    seen = []
    try:
        while line := process.stdout.readline():
            seen.append(line)
            yield line
    finally:
        timer.cancel()
    if too_late.is_set():
        said = "".join(seen)
        raise AssertionError(f"{process.args} did not end in {seconds:g} s. It said:\n{said}")


def kill_tree(pid: int) -> None:
    """Kill this process and its children, because they may hold its output open."""
    try:
        top = psutil.Process(pid)
        processes = [*top.children(recursive=True), top]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def join(thread: threading.Thread, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until `thread` ends."""
    thread.join(seconds)
    assert not thread.is_alive(), f"the thread {thread.name} did not end in {seconds:g} s"


def run_to_end(
    command: Sequence[str | Path],
    *,
    check: bool = False,
    seconds: float = LONG_SECONDS,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run `command` and capture its output; after `seconds`, kill it and fail."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, **options)
    except subprocess.TimeoutExpired as error:
        said = f"{_text(error.stdout)}{_text(error.stderr)}"
        raise AssertionError(f"{command} did not end in {seconds:g} s. It said:\n{said}") from error
    said = f"{done.stdout}{done.stderr}"
    assert not check or done.returncode == 0, f"{command}: exit code {done.returncode}:\n{said}"
    return done


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
