"""Kills what Ray leaves behind when the driver ends, for any reason.

The driver starts this file as a separate process and keeps a pipe to it. When the pipe closes,
after a clean exit or SIGKILL, this process kills every process of the driver's Ray session and
removes the session's folder. Ray's own clean-up takes 20-30 s after a SIGKILL. The file imports
only the standard library and is started with -S -I, so that it starts within milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SESSION_VARIABLE = "PION_RAY_SESSION"


def start_reaper(session_folder: Path) -> subprocess.Popen[bytes]:
    """Start the reaper; to kill the session, close the returned process's stdin."""
    from pion.secret_names import without_secret_names  # not where this file is run

    return subprocess.Popen(
        [sys.executable, "-S", "-I", __file__, str(session_folder)],
        env=without_secret_names(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that a Ctrl-C reaches only the driver
    )


def session_processes(session_folder: str) -> list[int]:
    """Return the ids of processes that name the session's folder in command line or environment."""
    needle = session_folder.encode()
    others = (pid for pid in _all_processes() if pid != os.getpid())
    return [pid for pid in others if needle in _read(pid, "cmdline") + _read(pid, "environ")]


def children_of(pids: set[int]) -> set[int]:
    """Return `pids` and all their descendants: renamed ones don't name the session's folder."""
    parents: dict[int, int] = {}
    for pid in _all_processes():
        with contextlib.suppress(IndexError, ValueError):
            parents[pid] = int(_read(pid, "stat").rsplit(b")", 1)[1].split()[1])
    family = set(pids)
    while True:
        grown = family | {pid for pid, parent in parents.items() if parent in family}
        if grown == family:
            return family
        family = grown


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    """Return what /proc says of a process; nothing if it has ended, or is another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def end_session(session_folder: str) -> None:
    """Kill the session's processes until none is left, then remove its folder."""
    for _ in range(50):
        found = children_of(set(session_processes(session_folder))) - {os.getpid()}
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(session_folder, ignore_errors=True)


def main() -> None:
    """Block until the driver's end of the pipe closes, then end its session."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_session(sys.argv[1])


if __name__ == "__main__":
    main()
