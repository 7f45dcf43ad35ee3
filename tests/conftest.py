"""How tests share four processes, and one S3 service in each. Each test has its own bucket.

Starting Python and Ray takes one core and most of the time, so several processes are faster. The
tests of one file stay in one process, so the tests of test_doors.py share one Ray. The longest
files come first.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pion.train.memory_trace import remembered
from pipeline.workers.ray_workers import RAY_ADDRESS, private_environment
from pipeline.workers.reaper import SESSION_VARIABLE, start_reaper
from tests.paths import REPOSITORY
from tests.support.clock import FakeClock
from tests.support.s3_server import FaultProxy, S3Server, s3_server
from tests.support.waiting import PATIENCE_SECONDS, read_until
from tests.support.whole_runs import kill_what_still_runs, whole_run

# Imports make millions of objects and no garbage. See `pytest_collection_finish`.
gc.disable()

# If two processes on the same cores have threads that spin while waiting, both take ten times as
# long. Torch reads this when it is first imported, here and in processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The matrices of tests are too small for more, and their processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests start hundreds of Python processes. With PYTHONDONTWRITEBYTECODE each would take three
# seconds to compile torch, so they keep the bytecode here, outside the source tree. matplotlib's
# list of fonts is here too: otherwise every test that sets XDG_CACHE_HOME builds it again. uv keeps
# its cache where it is.
CACHE = REPOSITORY / ".pytest_cache" / "started_by_tests"
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(CACHE / "bytecode"))
os.environ.setdefault("UV_CACHE_DIR", str(Path("~/.cache/uv").expanduser()))
os.environ.setdefault("MPLCONFIGDIR", str(CACHE / "matplotlib"))
# transformers copies a model's modelling files here before it runs them, by their hash.
os.environ["HF_MODULES_CACHE"] = str(CACHE / "modelling_files")

# By measured time: a long file at the end would leave the other processes idle.
LONGEST = """
    test_doors test_rehearsal test_terminal test_secrets test_prepare_in_pieces test_page
    test_chat_templates test_prefer test_hangs test_crash_everywhere test_fork test_keeper_killed
    test_run_tiny test_keeper_trouble test_compute test_records
"""
LONGEST_FIRST = LONGEST.split()

WHOLE_FILE = re.compile(r"^pytestmark = (?:\[\s*)?pytest\.mark\.(soak|rental)\b", re.MULTILINE)

# What the tests import takes Python a minute to compile. Two processes do it once for a checkout,
# each half of it, before four processes do the whole of it each.
COMPILED = CACHE / "compiled"
IMPORTED = (
    "import torch._dynamo, torch._inductor.compile_fx, transformers.generation.utils, peft",
    "import ray, sky, moto.server, boto3, openai, fastapi, huggingface_hub, sklearn.metrics",
)

SHARED_RAY = """
import sys, time
from pipeline.workers.ray_fit import start_ray
start_ray(sys.argv[1], None, cpus=2, gpus=0)
import ray
print("address", ray.get_runtime_context().gcs_address, flush=True)
time.sleep(100_000)
"""


def pytest_configure(config: pytest.Config) -> None:
    """Try the same examples each time, however busy the machine is; soak tests try new ones."""
    searching = "soak" in config.option.markexpr.replace("not soak", "")
    hypothesis.settings.register_profile("suite", derandomize=not searching, deadline=None)
    hypothesis.settings.load_profile("suite")
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if config.getoption("numprocesses", None) and not is_worker and not COMPILED.exists():
        _compile_what_tests_import()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import the tests' files, each process beginning with others. An import compiles a file."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    folders = [Path(name).resolve() for name in session.config.args] if worker else []
    files = [path for folder in folders for path in sorted(folder.rglob("test_*.py"))]
    first = len(files) * int((worker or "0").removeprefix("gw")) // 4
    for path in files[first:] + files[:first]:
        if not pytest_ignore_collect(path, session.config):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            with contextlib.suppress(Exception, pytest.skip.Exception):  # told when it is collected
                importlib.import_module(name)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of which no test is selected: some import a compiler or SkyPilot."""
    if collection_path.suffix != ".py":
        return None
    mark = WHOLE_FILE.search(collection_path.read_text(encoding="utf-8"))
    left_out = mark and re.search(rf"not (slow|{mark[1]})", config.option.markexpr)
    return True if left_out else None


def _compile_what_tests_import() -> None:
    compiling = [subprocess.Popen([sys.executable, "-c", code]) for code in IMPORTED]
    if not any([process.wait(PATIENCE_SECONDS) for process in compiling]):
        COMPILED.parent.mkdir(parents=True, exist_ok=True)
        COMPILED.touch()


def pytest_collection_finish() -> None:
    """Leave what is imported out of each later collection of garbage, here and in forks.

    Traces of models make millions of objects that live on. With Python's thresholds, looking at
    them again and again takes a twentieth of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()
    # Autograd counts the devices in its first backward pass, and torch.compile adds a pretended
    # device. If torch.compile came first, no later fork could run a backward pass.
    if torch := sys.modules.get("torch"):
        torch.ones((), requires_grad=True).backward()


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {mark.name for mark in item.iter_markers()} & {"soak", "rental", "gpu"}:
            item.add_marker("slow")
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    name = item.path.stem
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of who runs the tests out of the tests: with each run, it grows.

    The processes that tests start trace each step once too.
    """
    cache = tmp_path_factory.mktemp("cache")
    traces = _traces_of_the_session(tmp_path_factory)
    (cache / "pion").mkdir()
    (cache / "pion" / "step-memory").symlink_to(traces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("TRACES_OF_THE_TESTS", str(traces))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_memory_of_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trace each step once for all tests, though tests have cache folders of their own."""
    folder = _traces_of_the_session(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembered, "_folder", lambda: folder)
        yield


def _traces_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _of_the_session(tmp_path_factory) / "step-memory"
    folder.mkdir(exist_ok=True)
    return folder


def _of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    temporary = tmp_path_factory.getbasetemp()
    # Each of xdist's processes has its own folder in the folder of the session.
    return temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary


@pytest.fixture
def recorded_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read what models need from a record, which a soak test compares with traces."""
    from tests.support.recorded_traces import recorded_trace  # imports much of torch

    monkeypatch.setattr(remembered, "_trace", recorded_trace)


@pytest.fixture(scope="module")
def quick_renderer() -> Iterator[None]:
    """Render chat templates in this process: another one takes a second to start."""
    from tests.support.in_process_renderer import InProcessRenderer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`whole(**changes)`: the folder of a finished tiny job, with these changes to its fields."""
    return functools.partial(whole_run, _of_the_session(tmp_path_factory) / "whole_runs")


@pytest.fixture(autouse=True)
def _no_run_outlives_its_test() -> Iterator[None]:
    yield
    kill_what_still_runs()


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[dict[str, str]]:
    """One Ray for tests that don't need their own; returns the variables that point to it."""
    session = Path(tempfile.mkdtemp(prefix="pion-ray-", dir="/tmp"))
    reaper = start_reaper(session)
    access = private_environment({})
    process = subprocess.Popen(
        [sys.executable, "-c", SHARED_RAY, str(session)],
        env=os.environ | access | {SESSION_VARIABLE: str(session)},
        stdout=subprocess.PIPE,
        text=True,
    )
    address = read_until(process, "address").split()[-1]
    yield access | {RAY_ADDRESS: address}
    assert reaper.stdin is not None
    reaper.stdin.close()
    reaper.wait(PATIENCE_SECONDS)
    process.wait(PATIENCE_SECONDS)


@pytest.fixture
def on_shared_ray(shared_ray: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in shared_ray.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3_store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty store in its own bucket, for this process and its children."""
    s3.use(monkeypatch)
    return f"s3://{s3.bucket()}/runs"


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy between this process's S3 clients and the service. It can inject failures."""
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        yield proxy


@pytest.fixture
def time() -> FakeClock:
    return FakeClock()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `python -c code arguments…`. Processes that still run after the test are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(PATIENCE_SECONDS)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
