"""A separate SkyPilot for the tests: home folder, price list, API server, and its pods' image.

Everything is in one folder. Its name is in the environment of every process, so the reaper can end
them all and remove the folder, however the tests end.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.rent.managed.provider.jobs import ENDED
from pipeline.workers.reaper import children_of, session_processes, start_reaper
from tests.paths import REPOSITORY
from tests.rental.loopback_runpod import RunPod, loopback_runpod
from tests.rental.pods import HOME, RUNTIME
from tests.support.runpod_api import CONFIG
from tests.support.sky_catalog import PRICES, write_catalog
from tests.support.waiting import LONG_SECONDS, PATIENCE_SECONDS, run_to_end

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The jobs controller runs in the API server's process tree. So no controller machine is rented, and
# the checkout reaches the pod without a bucket.
_CONFIG = """
jobs:
  controller: {consolidation_mode: true}
  status_check: {min_elapsed_seconds: 300}
"""


@dataclass
class Loopback:
    """SkyPilot and a RunPod on this machine."""

    home: Path
    runpod: RunPod
    environment: dict[str, str] = field(default_factory=dict)
    """For subprocesses that use this SkyPilot: `sky …`, `pion launch …`, or `import sky`."""

    @property
    def user_hash(self):
        """The hash with which SkyPilot marks machines that are rented from here."""
        return (self.home / ".sky" / "user_hash").read_text().strip()

    def sky(self, *arguments, **more_environment):
        """Run `sky` with `arguments` and return its output. Raises RuntimeError if it fails."""
        done = subprocess.run(
            [f"{sys.prefix}/bin/sky", *arguments],
            cwd=REPOSITORY,
            env=self.environment | more_environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONG_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"sky {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}")
        return done.stdout

    def jobs(self):
        """Return every managed job in SkyPilot's queue."""
        output = self.sky("jobs", "queue", "-o", "json")
        begin = output.find("[\n")  # without jobs the output is only words
        return list(json.JSONDecoder().raw_decode(output[begin:])[0]) if begin >= 0 else []

    def living_jobs(self):
        """Return the jobs that have a machine or may still get one."""
        return [job for job in self.jobs() if str(job["status"]).rpartition(".")[2] not in ENDED]

    def start(self):
        """Start the API server. This takes about 15 s."""
        self.sky("api", "start")

    def stop(self):
        """Stop the API server, as when the laptop shuts down. Pods and their jobs continue."""
        self.sky("api", "stop")

    @contextmanager
    def asleep(self):
        """Freeze every process of this home, as a laptop that sleeps does: its server, its ssh
        connections and its windows. Pods and their jobs continue."""
        frozen = children_of(set(session_processes(f"HOME={self.home}")))
        self._signal(frozen, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(frozen, signal.SIGCONT)

    @staticmethod
    def _signal(pids, number):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextmanager
    def machines_idle_for(self, minutes):
        """Let machines that are rented meanwhile end themselves after so many idle minutes."""
        self.environment["LOOPBACK_AUTODOWN_MINUTES"] = str(minutes)
        self.stop()
        self.start()
        try:
            yield
        finally:
            del self.environment["LOOPBACK_AUTODOWN_MINUTES"]
            self.stop()
            self.start()

    def laptop(self, name):
        """Return a home on another machine, whose commands ask the server of this home."""
        home = _make_home(self.home.parent / name)
        elsewhere = f"http://127.0.0.1:{self.environment['SKYPILOT_API_SERVER_LOCAL_PORT']}"
        environment = _environment(home, self.runpod.url) | {
            "SKYPILOT_API_SERVER_ENDPOINT": elsewhere,
            "SKYPILOT_USER_ID": self.user_hash,
        }
        return Loopback(home, self.runpod, environment)

    def write_catalog(self, prices=PRICES, regions=None):
        """Change the price list. The API server only reads it when it starts: stop and start it."""
        write_catalog(self.home, prices, regions)
        self.runpod.prices = prices


@contextmanager
def loopback_skypilot(ports):
    """Start SkyPilot's API server with nothing rented. The pods can reach our `ports`."""
    folder = Path(tempfile.mkdtemp(prefix="pion-rental-", dir="/var/tmp"))
    reaper = start_reaper(folder)
    try:
        home, image = _make_home(folder / "home"), folder / "image"
        (home / ".sky" / "config.yaml").write_text(_CONFIG)
        environment = build_image(folder, image)
        with loopback_runpod(folder, image, environment, ports) as runpod:
            loopback = Loopback(home, runpod, _environment(home, runpod.url))
            loopback.start()
            yield loopback
    finally:
        assert reaper.stdin is not None
        reaper.stdin.close()
        reaper.wait(PATIENCE_SECONDS)


def _make_home(home):
    (home / ".runpod").mkdir(parents=True)
    (home / ".runpod" / "config.toml").write_text(CONFIG)
    write_catalog(home)
    return home


def build_image(folder, image):
    """Make the files that pods have and this machine lacks; return the environment of pods.

    They replace an image with CUDA's torch, sshd and SkyPilot's runtime. The torch, and the
    packages that a boot installs, are this machine's.
    """
    uv = find_uv()
    for tool, text in {"apt": "exit 0", "sudo": 'exec "$@"'}.items():
        path = image / "usr/local/bin" / tool
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    pod_home = image / HOME.lstrip("/")
    (pod_home / ".local/bin").mkdir(parents=True)
    shutil.copy2(uv, pod_home / ".local/bin/uv")
    build_runtime(uv, image / RUNTIME.lstrip("/"))
    cache = run_to_end([uv, "cache", "dir"], check=True)
    return {
        # The python3 on this path has torch.
        "PATH": f"{sys.prefix}/bin:{HOME}/.local/bin:{SYSTEM_PATH}",
        "UV_CACHE_DIR": cache.stdout.strip(),
        "UV_OFFLINE": "1",
        # Files of the cache can't be linked into a pod, and copying them takes a minute.
        "UV_LINK_MODE": "symlink",
        "PION_EXPECT_GPUS": "0",
        # SkyPilot's job is a worker of Ray, which leaves the cores to other tests (nice 15).
        "RAY_worker_niceness": "0",
    }


def build_runtime(uv, runtime):
    """Install what SkyPilot installs before a job: Ray and itself, in Python 3.10."""
    import sky
    from sky.skylet import constants

    python = find_python()
    assert python is not None
    # Relocatable, because in a pod it is in another folder.
    create = [uv, "venv", "-q", "--seed", "--relocatable", "--python", python, str(runtime)]
    run_to_end(create, check=True)
    packages = [
        f"ray[default]=={constants.SKY_REMOTE_RAY_VERSION}",
        f"skypilot[runpod,remote]=={sky.__version__}",
        "setuptools<70",
        "click<8.3.0",
        "pydantic-core==2.41.1",
    ]
    install = [uv, "pip", "install", "-q", "--python", str(runtime / "bin/python"), *packages]
    # In this folder the pins in our pyproject.toml don't apply.
    done = run_to_end(install, cwd=runtime)
    if done.returncode:
        raise NoRuntime(f"SkyPilot's own runtime can't be installed here: {done.stderr.strip()}")
    # Compiled once here, not in each pod.
    run_to_end([runtime / "bin/python", "-c", "import sky.jobs, ray.scripts.scripts"], check=True)


class NoRuntime(Exception):
    """SkyPilot's runtime for pods can't be installed on this machine."""


def find_python():
    """Return a Python 3.10 to build SkyPilot's runtime with; None if this machine has none."""
    pyenv = Path("~/.pyenv/versions").expanduser()  # its shims are not interpreters
    folders = [str(path.parent) for path in pyenv.glob("3.10.*/bin/python3.10")]
    environment = os.environ | {"PATH": ":".join([*folders, os.environ["PATH"]])}
    command = [find_uv(), "python", "find", "--no-python-downloads", "--no-project", "3.10"]
    found = run_to_end(command, env=environment)
    return found.stdout.strip() if found.returncode == 0 else None


def find_uv():
    """Return the uv binary itself, not a version manager's shim."""
    if "UV" in os.environ:  # set by `uv run`
        return os.environ["UV"]
    command = ["uv", "run", "--no-project", "-q", "sh", "-c", "echo $UV"]
    return run_to_end(command, check=True).stdout.strip()


def _lasting_port():
    """Return a free port that no connection gets while the server is off: they begin at 32768."""
    while True:
        port = random.randrange(20_000, 32_768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _environment(home, api):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SKYPILOT_", "AWS_"))}
    return inherited | {
        "HOME": str(home),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parent / "hook"),
        "RUNPOD_API_BASE_URL": api,
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(_lasting_port()),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        # The API server plans its worker processes by these limits.
        "SKYPILOT_POD_CPU_CORE_LIMIT": "2",
        "SKYPILOT_POD_MEMORY_GB_LIMIT": "6",
        "NO_PROXY": "127.0.0.1,localhost",
    }
