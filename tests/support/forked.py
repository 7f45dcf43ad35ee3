"""Commands in forks of a process that has imported everything, so that each starts at once.

Otherwise the start of a run imports torch, which takes a core for seconds. A fork is a real
process: it has its own pid, environment, folder and output, and can be killed. It does not test how
`pion` is imported. A fork can also do what its parent must not: mount a file system, become another
user, lower its limits.
"""

import atexit
import contextlib
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pipeline.cli
from pipeline.entry import run_and_exit
from tests.paths import REPOSITORY
from tests.support.hub_server import clients

T = TypeVar("T")

IMPORTED = (
    # Other users may not be allowed to read Python's own files.
    "encodings.idna",
    "encodings.utf_8_sig",
    "boto3",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pion.evaluation.held_out",
    "pion.evaluation.core.measure",
    "pion.evaluation.ngram",
    "pion.formats.export",
    "pion.formats.verify",
    "pion.generation.generate",
    "pion.generation.text_stream",
    "pion.train.memory_trace.live_bytes",
    "pion.train.memory_trace.remembered",
    "pion.train.optimizer.muon_rounds",
    "pion.train.smaller_plan",
    "pion.train.trainer",
    "pipeline.base.job_with_base",
    "pipeline.cli",
    "pipeline.commands.export",
    "pipeline.commands.import_seed",
    "pipeline.commands.status",
    "pipeline.commands.stop",
    "pipeline.data.shard_cache",
    "pipeline.report.report_file",
    "pipeline.run.command",
    "pipeline.run.measure_base",
    "pipeline.stages.evaluate",
    "pipeline.stages.prepare",
    "pipeline.stages.publish",
    "pipeline.training.loop",
    "pipeline.training.reference.of_stage",
    "pipeline.training.setup",
    "pipeline.workers.ray_tasks",
    "safetensors.torch",
    "tests.support.hard_places",
    "torch.fx.experimental._constant_symnode",
    "torch.nested._internal.nested_tensor",
    # Which pion.formats.verify needs, and imports at last.
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3.modeling_qwen3",
    "tests.support.before_forks",  # the last
)
# Variables that a library, or Python itself, reads once: when it is imported.
READ_AT_IMPORT = ("HF_", "OMP_", "MKL_", "GOMP_", "TORCH", "CUDA", "PYTHON", "LC_", "LANG", "LD_")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it printed."""

    code: int
    output: str


def may_fork(environment: Mapping[str, str]) -> bool:
    """Return whether a fork with this environment does what a new process does."""

    # `ForkedRun` reads PYTHONPATH again, and lets the Hub's clients use a server of a test.
    again = {"PYTHONPATH"} | (clients.VARIABLES if "HF_ENDPOINT" in environment else set())

    def read_at_import(variables: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in variables.items()
            if name.startswith(READ_AT_IMPORT) and name not in again
        }

    return read_at_import(environment) == read_at_import(_environment())


class ForkedRun:
    """`python -m pipeline.cli arguments…` in a fork: what tests use of `subprocess.Popen`.

    Its output goes to `output`, or to a pipe that `stdout` reads.
    """

    stdin = stderr = None

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        umask: int = -1,
        output: BinaryIO | None = None,
    ) -> None:
        self.args = [sys.executable, "-m", "pipeline.cli", *arguments]
        reading, writing = _context().Pipe(duplex=False)
        if output is not None:
            os.dup2(output.fileno(), writing.fileno(), inheritable=False)
        self._process = _context().Process(
            target=_run, args=(self.args, str(folder), dict(environment), umask, writing)
        )
        self._process.start()
        writing.close()
        self.stdout = os.fdopen(os.dup(reading.fileno()), encoding="utf-8", errors="replace")
        reading.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code; None while the command runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command ends; return its exit code. Raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command without warning."""
        self.send_signal(signal.SIGKILL)


def _run(
    command: list[str], folder: str, environment: dict[str, str], umask: int, output: Connection
) -> None:
    """Become a new process that runs a command."""
    from pipeline.state import owner

    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if umask >= 0:
        os.umask(umask)
    # What modules have kept of the process that imported them.
    tempfile.tempdir = None
    if "HF_ENDPOINT" in environment:
        for module, name, value in clients.read_at_import(environment):
            setattr(module, name, value)
    owner._SESSION, owner._STARTED_AT = uuid.uuid4().hex, round(time.time(), 3)
    sys.orig_argv[:] = command
    sys.argv = ["pion", *command[3:]]
    for place in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if place and (site := Path(place, "sitecustomize.py")).exists():
            runpy.run_path(str(site))
    try:
        run_and_exit()
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing leaves them out


def in_fork(work: Callable[..., T], *arguments: Any) -> T:
    """Return what `work(*arguments)` returns in a fork. `work` is in an `IMPORTED` module."""
    context = _context()
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, work, arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"{work.__name__} ended with {process.exitcode}") from None
    finally:
        process.join()


def pion(*arguments: str, folder: str, env: Mapping[str, str] | None = None) -> Ended:
    """Run `pion arguments…` in `folder`, in a fork of this process."""
    reading, writing = os.pipe()  # a file may have no room
    child = os.fork()
    if child == 0:
        _become_pion(arguments, folder, dict(env or {}), writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        output = pipe.read().decode(errors="replace")
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output)


def _become_pion(arguments: tuple[str, ...], folder: str, env: dict[str, str], output: int) -> None:
    """Run the command and end this process, whatever happens."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.update(env)
        os.chdir(folder)
        code = pipeline.cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _send(sending: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sending.send(work(*arguments))


@functools.cache
def _environment() -> dict[str, str]:
    """Return the environment of the process that forks."""
    _context()
    with _without_a_hub():
        return dict(os.environ)


@contextlib.contextmanager
def _without_a_hub() -> Iterator[None]:
    """Hide the Hub of the test that happens to be the first: later forks have others, or none."""
    names = clients.VARIABLES if "HF_ENDPOINT" in os.environ else frozenset[str]()
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with contextlib.chdir(REPOSITORY), _without_a_hub():  # where the server finds `tests`
        forkserver.ensure_running()
    return context
