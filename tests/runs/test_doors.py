"""What a running `pion run` with workers opens to others: to other machines and other users.

The run of these tests has two workers and starts Ray itself. tests/runs/test_ray.py looks at the
sockets of one worker, and of two workers who meet at a socket, as on several nodes.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pipeline.workers.reaper import children_of, session_processes
from tests.runs.test_ray import session_of
from tests.support.changing_folder import files_below
from tests.support.doors import Socket, listening, open_to_others
from tests.support.waiting import PATIENCE_SECONDS, run_to_end
from tests.support.whole_runs import kill, start, wait_for, write_job

# Ask Ray's GCS, which holds the code of the workers, for the names of what it holds.
ASK_RAY = """
import sys
from ray._raylet import GcsClient
try:
    keys = GcsClient(sys.argv[1]).internal_kv_keys(b"", None, timeout=float(sys.argv[2]))
    print("allowed", keys)
except Exception as error:
    print("refused", error)
"""
KNOWN_TOKEN = "known-to-everybody"


@dataclass
class Seen:
    """What was seen of a run while its two workers trained."""

    sockets: set[Socket]
    token: str
    session: Path
    # What Ray answers to who has the token, and to who has that of the environment.
    friend: str
    stranger: str
    modes: dict[str, int] = field(default_factory=dict)
    # Everything printed, listed or written, by where it was.
    texts: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Run where everything is unsafe: no umask, a Ray that would ask nobody, another interface.

    A socket in its temporary folder would have too long a path for the system.
    """
    folder = tmp_path_factory.mktemp("doors")
    with tempfile.TemporaryDirectory(prefix="pion-", dir="/tmp") as short:
        temporary = Path(short, "x" * (39 - len(short) - 1))
        temporary.mkdir()
        assert len(str(temporary)) == 39
        unsafe = {
            "TMPDIR": str(temporary),
            "RAY_AUTH_MODE": "disabled",
            "RAY_AUTH_TOKEN": KNOWN_TOKEN,
            "RAY_AUTH_TOKEN_PATH": str(folder / "no-such-file"),
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        job = write_job(folder, sft=None, pretrain__steps=100_000, log__every=1)
        process = start(job, "hardware.workers=2", env=os.environ | unsafe, umask=0)
        said = wait_for(process, "pretrain step")
        try:
            seen = look_at(process.pid, temporary)
        finally:
            said += kill(process)
    seen.texts["output"] = said.encode()
    return seen


def look_at(driver: int, temporary: Path) -> Seen:
    session = Path(session_of(driver))
    processes = children_of({driver, *session_processes(str(session))})
    sockets = listening(processes)
    (gcs,) = {each.port for each in sockets if each.program == "gcs_server"}
    token = token_of(driver)
    seen = Seen(sockets, token, session, ask_ray(gcs, token), ask_ray(gcs, KNOWN_TOKEN))
    for path in (session, *temporary.iterdir()):
        seen.modes[path.name] = stat.S_IMODE(path.stat().st_mode)
    places = [*files_below(session), *files_below(temporary)]
    for path in (*places, *(Path(f"/proc/{pid}/cmdline") for pid in processes)):
        with contextlib.suppress(OSError):  # a file or process of Ray that is gone already
            seen.texts[str(path)] = path.read_bytes()
    return seen


def ask_ray(port: int, token: str) -> str:
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [sys.executable, "-c", ASK_RAY, f"127.0.0.1:{port}", str(PATIENCE_SECONDS)]
    return run_to_end(command, check=True, env=os.environ | access).stdout


def token_of(driver: int) -> str:
    """Return the token of Ray, which is in the environment of the process that runs Ray Train."""
    for process in psutil.Process(driver).children():
        if "pipeline.workers.ray_fit" in process.cmdline():
            return process.environ()["RAY_AUTH_TOKEN"]
    raise AssertionError("no process runs Ray Train")


def test_other_machines_reach_no_process_of_the_run(seen: Seen) -> None:
    programs = [each.program for each in seen.sockets]
    assert {"gcs_server", "raylet", "ray::RuntimeEnvAgent"} <= set(programs)
    # Each worker listens for Ray and for the other worker.
    assert sum("RayTrainWorker" in name for name in programs) == 4
    assert open_to_others(seen.sockets) == set()
    assert 44217 not in {each.port for each in seen.sockets}, "Ray's monitor asks for no token"


def test_ray_asks_for_a_token_whatever_the_environment_says(seen: Seen) -> None:
    assert seen.friend.startswith("allowed")
    assert seen.stranger.startswith("refused")
    assert "InvalidAuthToken" in seen.stranger


def test_the_token_is_random_and_can_be_read_nowhere(seen: Seen) -> None:
    assert len(bytes.fromhex(seen.token)) == 32
    names = {Path(name).name for name in seen.texts}
    assert {"output", "cmdline", "raylet.out", "gcs_server.out"} <= names, (
        "otherwise this test sees too little"
    )
    assert [name for name, text in seen.texts.items() if seen.token.encode() in text] == []


def test_no_other_user_can_enter_the_folders_of_ray_or_read_its_logs(seen: Seen) -> None:
    assert seen.session.parent == Path("/tmp"), "Ray's sockets don't fit into the other folder"
    assert seen.modes.pop(seen.session.name) == 0o700
    (log,) = [name for name in seen.modes if name.startswith("pion-workers-")]
    assert seen.modes[log] == 0o600
