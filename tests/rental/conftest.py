"""Real SkyPilot, a RunPod on loopback, an S3 store: what the tests of renting share.

The fixtures are `loopback` (one per session) and `rented` (the same cloud, with nothing rented
before or after the test). What is rented, and how it fails, is `loopback.runpod`.
"""

import contextlib
import os
import shutil
from importlib.util import find_spec

import pytest

from tests.rental.rented import Rented, wait_until
from tests.rental.skypilot_home import NoRuntime, find_python, loopback_skypilot
from tests.support.hub_server import hub_server
from tests.support.waiting import run_to_end

OVERLAY = """
mount -t tmpfs pod /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
"""


def why_impossible():
    """Return what this machine lacks for pods; None if nothing."""
    if find_spec("sky") is None or find_spec("sky.backends") is None:
        return "SkyPilot is not installed (uv sync)"
    if os.geteuid() != 0:
        return "only root can make pods"
    for tool in ("sshd", "rsync", "unshare", "nsenter", "uv"):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            return f"{tool} is not installed (Debian: openssh-server, rsync, util-linux; pip: uv)"
    namespaces = ["--mount", "--pid", "--net", "--uts", "--fork", "--propagation", "private"]
    tried = run_to_end(["unshare", *namespaces, "sh", "-ec", OVERLAY])
    if tried.returncode:
        return f"no namespaces or overlays here: {tried.stderr.strip()}"
    if find_python() is None:
        return "SkyPilot's runtime in a pod needs Python 3.10 (pyenv install 3.10)"
    return None


@pytest.fixture(scope="session")
def hub():
    """A Hub that the pods reach at the same address."""
    with hub_server() as server:
        yield server


@pytest.fixture(scope="session")
def loopback(s3, hub):
    if (why := why_impossible()) is not None:
        pytest.skip(why)
    with contextlib.ExitStack() as stack:
        try:
            ports = [int(server.url.rpartition(":")[2]) for server in (s3, hub)]
            started = loopback_skypilot(ports=ports)
            skypilot = stack.enter_context(started)
        except NoRuntime as error:
            pytest.skip(str(error))
        yield skypilot


@pytest.fixture
def rented(loopback, s3, monkeypatch):
    s3.use(monkeypatch)
    yield Rented(loopback, s3, f"s3://{s3.bucket()}/runs")
    if loopback.living_jobs():
        loopback.sky("jobs", "cancel", "-y", "--all")
        # A job that loses its pod before it is cancelled would rent one more in the next test.
        wait_until(lambda: not loopback.living_jobs(), "the end of every managed job", every=3.0)
    if loopback.runpod.pods(None):
        loopback.sky("down", "-y", "--all")
    loopback.runpod.forget()
