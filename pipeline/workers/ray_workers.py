"""The training workers of one `pion run`: started in the background, followed, and all ended.

Ray runs in a separate process (ray_fit.py), so `pion run` does not import it, a Ctrl-C on the
terminal does not reach it, and killing processes ends it. It starts before the data is ready,
because it takes half a minute to reach the first line of the training loop. There the workers wait
for `prepare` to be committed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pion.errors import BadInput
from pipeline.console.messages import FitEnded, FromWorker
from pipeline.machine.child_process import TRAINING, without_secrets
from pipeline.training.train_request import TrainRequest
from pipeline.workers.lifeline import LifelineServer
from pipeline.workers.reaper import SESSION_VARIABLE, start_reaper

LOOPBACK = "127.0.0.1"
# How long Ray Train may take to end once it is asked to.
ORDERLY_SECONDS = 30.0
# Ray gives everybody all rights to its own folder. So this folder is in one that stays private. The
# name is short because of LONGEST_SOCKET.
RAY_FOLDER = "r"

# The most bytes in the path of a Unix socket.
LONGEST_SOCKET = 107
# What Ray's longest path of a socket has after the temporary folder.
_SOCKET_BELOW = (
    f"/pion-ray-12345678/{RAY_FOLDER}"
    "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)


def session_folder() -> Path:
    """Make a folder that only this user can enter, with a path short enough for Ray's sockets.

    Raises BadInput if there is no place for this folder.
    """
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent + _SOCKET_BELOW)) > LONGEST_SOCKET:
        parent = "/tmp"
    try:
        return Path(tempfile.mkdtemp(prefix="pion-ray-", dir=parent))
    except OSError as error:
        raise BadInput(
            f"Ray needs a temporary folder for its sockets, and {parent} can't be written ({error})"
            f". Nothing was trained. Set TMPDIR to a folder that you can write to, with a path of "
            f"at most {LONGEST_SOCKET - len(_SOCKET_BELOW)} bytes, or train without Ray: "
            "hardware.workers=0"
        ) from None


def private_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `environment` for a new Ray that listens on loopback, and asks for a new random token.

    Overrides what `environment` says about tokens, such as RAY_AUTH_MODE=disabled.
    """
    kept = {name: value for name, value in environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Without this, Ray on Linux replaces 127.0.0.1 by the machine's address on its network.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


# Environment variable: the address (host:port) of a running Ray to use instead of starting one.
RAY_ADDRESS = "PION_RAY_ADDRESS"

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
# Ray's words: "… node running low on memory. Memory on the node (IP: …, ID: …) was 22.40GB used /
# 23.54GB limit (0.951391)".
_MEMORY_FULL = re.compile(r"node running low on memory\..{0,300}? was (\S+ used / \S+ limit)")


class RayWorkers:
    """Ray Train workers that advance the training stages of `request`.

    `count` is their number, or the fewest and the most.

    `messages` carries what the workers say as (rank, message). When the process that runs Ray
    Train ends by itself, a FitEnded follows. `lifeline` knows how many workers have reached the
    training loop, and can ask them to stop. `shared` says whether the Ray is another program's.
    """

    def __init__(self, request: TrainRequest, count: int | tuple[int, int]) -> None:
        self.messages: queue.Queue[tuple[int, FromWorker | FitEnded]] = queue.Queue()
        self._request, self._count = request, count
        self._address = os.environ.get(RAY_ADDRESS) or None
        self.shared = self._address is not None
        self._session = session_folder()
        self.lifeline = LifelineServer(
            _own_address(self._address), lambda r, m: self.messages.put((r, m))
        )
        # Not in the session's folder: the reaper would kill a `tail` on it.
        self.log = Path(tempfile.mkstemp(prefix="pion-workers-", suffix=".log")[1])
        self._closing = self._ended_by_itself = False
        self.started = time.monotonic()
        self._reaper = start_reaper(self._session)
        self._process = self._start_ray_fit()
        threading.Thread(target=self._watch, daemon=True).start()

    def _start_ray_fit(self) -> subprocess.Popen[bytes]:
        # The token of a Ray that already runs is in this environment.
        environment = without_secrets(*TRAINING)
        if not self._address:
            environment = private_environment(environment)
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.workers.ray_fit"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {SESSION_VARIABLE: str(self._session)},
                start_new_session=True,
            )
        assert process.stdin is not None
        task = {
            "session": str(self._session),
            "address": self._address,
            "workers": self._count,
            "request": asdict(self._request),
            "lifeline": asdict(self.lifeline.address),
        }
        process.stdin.write(json.dumps(task).encode())
        process.stdin.close()
        return process

    def end_in_order(self) -> None:
        """Let Ray Train end this group and forget it; wait for that at most ORDERLY_SECONDS.

        Workers may still wait for a rank that has failed. What is not committed is lost. Ray then
        keeps no room for a group whose size may change. Otherwise it does, for three minutes, and
        the next run waits for it.
        """
        self._closing = True
        # Ray Train may be starting another group, which must not claim the run.
        self.lifeline.ask_to_stop()
        # Ray Train's handler of SIGINT cancels what it has reserved, and ends the workers.
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ORDERLY_SECONDS)

    def close(self) -> None:
        """End the workers, and all processes of Ray if we started it."""
        self._closing = True
        self.lifeline.close()
        # Close the pipe to the reaper, and wait for it. This takes a fraction of a second; Ray's
        # own shutdown takes several seconds.
        self._reaper.communicate()
        self._process.wait()
        shutil.rmtree(self._session, ignore_errors=True)
        if not self._ended_by_itself:
            self.log.unlink(missing_ok=True)

    def _watch(self) -> None:
        code = self._process.wait()
        if self._closing:
            return
        self._ended_by_itself = True
        words = last_words(self.log.read_text(errors="replace")) or f"exit code {code}"
        self.messages.put((-1, FitEnded(words)))


def last_words(log: str, advice: str = "lower hardware.micro_batch") -> str:
    """Return why the workers ended, by what Ray has written: its last line, unless it says that the
    machine's memory was full. Ray writes that earlier, and more after it. `advice` is what to do
    then."""
    log = _COLORS.sub("", log).strip()
    if (full := _MEMORY_FULL.search(log)) is not None:
        return (
            f"this machine's memory was full ({full[1]}), so Ray has ended them. Close other "
            f"programs, {advice}, or use a machine with more memory"
        )
    return log.splitlines()[-1] if log else ""


def _own_address(ray: str | None) -> str:
    """Return this machine's address as the Ray at `ray` sees it (host:port; None: here)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing; it only chooses the interface.
        probe.connect((ray.rpartition(":")[0] if ray else LOOPBACK, 9))
        return str(probe.getsockname()[0])
