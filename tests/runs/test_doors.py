"""What a running `pion run` with workers opens to others, and that nothing outlives it.

Others are other machines and other users. The run of these tests starts Ray itself, which takes
long, so one run serves them all. tests/runs/test_ray.py looks at the sockets of two workers who
meet at a socket, as on several nodes.
"""

import contextlib
import os
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pipeline.machine.kill_points import HALT_AT
from pipeline.workers.reaper import children_of, session_processes
from tests.runs.test_ray import session_of, workers_of
from tests.support.changing_folder import files_below
from tests.support.doors import Socket, listening, open_to_others
from tests.support.waiting import PATIENCE_SECONDS, run_to_end, wait_until
from tests.support.whole_runs import (
    Process,
    final_weights,
    finish,
    head_of,
    kill,
    outlives_its_test,
    start,
    wait_for,
    write_job,
)

# Ask Ray's GCS, which holds the code of the workers, for the names of what it holds.
ASK_RAY = """
import os, sys
from ray._raylet import GcsClient
for token in os.environ["TOKENS"].split():
    if os.fork() == 0:  # a process reads its token once, and importing Ray takes long
        os.environ["RAY_AUTH_TOKEN"] = token
        try:
            keys = GcsClient(sys.argv[1]).internal_kv_keys(b"", None, timeout=float(sys.argv[2]))
            print("allowed", keys, flush=True)
        except Exception as error:
            print("refused", repr(error), flush=True)
        os._exit(0)
    os.wait()
"""
KNOWN_TOKEN = "known-to-everybody"


@dataclass
class Seen:
    """What was seen of a run while its workers trained."""

    sockets: set[Socket]
    token: str
    workers: int
    session: Path
    # What Ray answers to who has the token, and to who has that of the environment.
    friend: str
    stranger: str
    # The names of Ray's processes, and of those among them that have imported torch.
    programs: set[str]
    with_torch: set[str]
    modes: dict[str, int] = field(default_factory=dict)
    # Everything printed, listed or written, by where it was.
    texts: dict[str, bytes] = field(default_factory=dict)


@contextlib.contextmanager
def unsafe(folder):
    """An environment where everything is unsafe: a Ray that would ask nobody, another interface.

    A socket in its temporary folder would have too long a path for the system.
    """
    with tempfile.TemporaryDirectory(prefix="pion-", dir="/tmp") as short:
        temporary = Path(short, "x" * (39 - len(short) - 1))
        temporary.mkdir()
        assert len(str(temporary)) == 39
        yield os.environ | {
            "TMPDIR": str(temporary),
            "RAY_AUTH_MODE": "disabled",
            "RAY_AUTH_TOKEN": KNOWN_TOKEN,
            "RAY_AUTH_TOKEN_PATH": str(folder / "no-such-file"),
            "GLOO_SOCKET_IFNAME": "eth0",
        }


@dataclass
class Halted:
    """A run whose worker waits in its second save, and what was seen of it then."""

    job: Path
    process: Process
    waits: Path
    seen: Seen


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    """Steps are fast, and no worker may end before it is killed: each waits for its second save,
    which stands still. A save has five files, and begins when the one before it is committed."""
    folder = tmp_path_factory.mktemp("doors")
    every = {"log__every": 1, "checkpoint__every_steps": 2}
    job, waits = write_job(folder, sft=None, hardware__workers=1, **every), folder / "waits"
    with unsafe(folder) as environment:
        halting = {HALT_AT: f"save:7:{waits}"}
        process = start(job, env=environment | halting, umask=0)
        outlives_its_test(process)
        try:
            said = wait_for(process, "pretrain step")
            wait_until(waits.exists, "the worker to wait")
            seen = look_at(process.pid, Path(environment["TMPDIR"]), workers=1)
            seen.texts["output"] = said.encode()
            yield Halted(job, process, waits, seen)
        finally:
            kill(process)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors")
    job = write_job(folder, sft=None, pretrain__steps=100_000, log__every=1)
    with unsafe(folder) as environment:
        process = start(job, "hardware.workers=2", env=environment, umask=0)
        outlives_its_test(process)
        try:
            said = wait_for(process, "pretrain step")
            seen = look_at(process.pid, Path(environment["TMPDIR"]), workers=2)
        finally:
            said += kill(process)
    seen.texts["output"] = said.encode()
    return seen


@pytest.fixture(params=["one worker", pytest.param("two workers", marks=pytest.mark.soak)])
def seen(request):
    if request.param == "one worker":
        halted = request.getfixturevalue("one_worker")
        return halted.seen
    return request.getfixturevalue("two_workers")


def look_at(driver, temporary, workers):
    session = Path(session_of(driver))
    processes = children_of({driver, *session_processes(str(session))})
    sockets = listening(processes)
    (gcs,) = {each.port for each in sockets if each.program == "gcs_server"}
    token = token_of(driver)
    friend, stranger = ask_ray(gcs, token, KNOWN_TOKEN)
    of_ray = [psutil.Process(pid) for pid in session_processes(str(session))]
    programs = {each.name() for each in of_ray}
    with_torch = {each.name() for each in of_ray if _has_torch(each)}
    seen = Seen(sockets, token, workers, session, friend, stranger, programs, with_torch)
    for path in (session, *temporary.iterdir()):
        seen.modes[path.name] = stat.S_IMODE(path.stat().st_mode)
    places = [*files_below(session), *files_below(temporary)]
    for path in (*places, *(Path(f"/proc/{pid}/cmdline") for pid in processes)):
        with contextlib.suppress(OSError):  # a file or process of Ray that is gone already
            seen.texts[str(path)] = path.read_bytes()
    return seen


def _has_torch(process):
    return any("libtorch" in each.path for each in process.memory_maps())


def ask_ray(port, *tokens):
    """Return what Ray answers to who has each of these tokens."""
    command = [sys.executable, "-c", ASK_RAY, f"127.0.0.1:{port}", str(PATIENCE_SECONDS)]
    access = {"RAY_AUTH_MODE": "token", "TOKENS": " ".join(tokens)}
    return run_to_end(command, check=True, env=os.environ | access).stdout.splitlines()


def token_of(driver):
    """Return the token of Ray, which is in the environment of the process that runs Ray Train."""
    for process in psutil.Process(driver).children():
        if "pipeline.workers.ray_fit" in process.cmdline():
            return process.environ()["RAY_AUTH_TOKEN"]
    raise AssertionError("no process runs Ray Train")


def test_other_machines_reach_no_process_of_the_run(seen):
    programs = [each.program for each in seen.sockets]
    assert {"gcs_server", "raylet", "ray::RuntimeEnvAgent"} <= set(programs)
    # Each worker listens for Ray. Each of two also listens in three groups of both: the one that
    # trains, and the two of a `Channel` for saves.
    assert sum("RayTrainWorker" in name for name in programs) == {1: 1, 2: 8}[seen.workers]
    assert open_to_others(seen.sockets) == set()
    assert 44217 not in {each.port for each in seen.sockets}, "Ray's monitor asks for no token"


def test_only_the_workers_import_torch_and_ray_train_starts_no_helper_without_work(seen):
    """Each takes a core for seconds, and the first line of the training loop waits for some."""
    assert {name.split(".")[0] for name in seen.with_torch} == {"ray::RayTrainWorker"}
    unneeded = {
        "ray::SynchronizationActor",
        "ray::TrainController",
        "ray::DatasetManager",
        "ray::PlacementGroupCleaner",
    }
    unneeded |= {"ray::IDLE", "ray::_AutoscalingCoordinatorActor", "ray::PlacementGroupCleaner"}
    assert not {name.split(".")[0] for name in seen.programs} & unneeded
    assert not {Path(name).stem for name in seen.texts} & {"dashboard", "monitor"}  # their logs


def test_ray_asks_for_a_token_whatever_the_environment_says(seen):
    assert seen.friend.startswith("allowed")
    assert seen.stranger.startswith("refused")
    assert "InvalidAuthToken" in seen.stranger


def test_the_token_is_random_and_can_be_read_nowhere(seen):
    assert len(bytes.fromhex(seen.token)) == 32
    names = {Path(name).name for name in seen.texts}
    assert {"output", "cmdline", "raylet.out", "gcs_server.out"} <= names, (
        "otherwise this test sees too little"
    )
    assert [name for name, text in seen.texts.items() if seen.token.encode() in text] == []


def test_no_other_user_can_enter_the_folders_of_ray_or_read_its_logs(seen):
    assert seen.session.parent == Path("/tmp"), "Ray's sockets don't fit into the other folder"
    assert seen.modes.pop(seen.session.name) == 0o700
    (log,) = [name for name in seen.modes if name.startswith("pion-workers-")]
    assert seen.modes[log] == 0o600


def test_a_killed_worker_and_then_a_killed_driver_change_no_bit_of_the_weights(one_worker, whole):
    unbroken = whole(sft=None)
    job, process, waits = one_worker.job, one_worker.process, one_worker.waits
    wait_until(lambda: bool(head_of(job.parent).checkpoints), "an earlier save to be committed")
    waits.unlink()
    session = session_of(process.pid)
    for worker in workers_of(process.pid, job.parent):
        assert worker.nice() == psutil.Process(process.pid).nice(), "others come before training"
        worker.kill()
    # Ray starts another worker, and it resumes from the last commit.
    said = wait_for(process, "pretrain: starts (continues after step")
    wait_until(waits.exists, "the next worker to wait")
    assert len(session_processes(session)) > 5
    said += kill(process)
    assert one_worker.seen.token not in said
    wait_until(lambda: not session_processes(session), "the processes of Ray to end")
    wait_until(lambda: not Path(session).exists(), "their folder to be removed")

    # A worker and a single process compute the same bits, and a second start of Ray takes long.
    assert "continues after step" in finish(job, "hardware.workers=0")
    assert final_weights(job.parent) == final_weights(unbroken)
    assert head_of(job.parent).owner is None
