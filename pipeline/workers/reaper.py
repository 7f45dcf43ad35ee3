"""Ends what Ray leaves behind when the driver dies, however it dies.

The driver starts this file as a process of its own and keeps a pipe to it. When the pipe closes,
whether by a clean exit or SIGKILL, every process of that driver's Ray session is ended by id and
the session's folder removed. Ray's own clean-up takes 20-30 s after a SIGKILL. Standard library
only and started with -S -I, so that it costs milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SESSION_VARIABLE = "PION_RAY_SESSION"


def start_reaper(session_folder: Path) -> subprocess.Popen[bytes]:
    """Start watching; close the returned process's stdin to have everything ended."""
    return subprocess.Popen(
        [sys.executable, "-S", "-I", __file__, str(session_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C on the terminal is for the driver
    )


def session_processes(session_folder: str) -> list[int]:
    """Ids of the processes whose command line or environment names the session's folder."""
    found = []
    needle = session_folder.encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        for name in ("cmdline", "environ"):
            try:
                with open(f"/proc/{entry.name}/{name}", "rb") as file:
                    if needle in file.read():
                        found.append(int(entry.name))
                        break
            except OSError:
                continue
    return found


def children_of(pids: set[int]) -> set[int]:
    """`pids` and every process below them: a renamed child shows neither name nor environment."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat", "rb") as file:
                    parents[int(entry.name)] = int(file.read().rsplit(b")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    family = set(pids)
    while True:
        grown = family | {pid for pid, parent in parents.items() if parent in family}
        if grown == family:
            return family
        family = grown


def end_session(session_folder: str, rounds: int = 50) -> None:
    """Kill the session's processes until none is left."""
    for _ in range(rounds):
        found = children_of(set(session_processes(session_folder))) - {os.getpid()}
        if not found:
            break
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    shutil.rmtree(session_folder, ignore_errors=True)


def main() -> None:
    """Wait for the driver's end of the pipe to close, then end its session."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_session(sys.argv[1])


if __name__ == "__main__":
    main()
