"""The loopback cloud itself: pods are isolated from each other and from us, and leave nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.workers.reaper import session_processes
from tests.rental.conftest import why_impossible
from tests.rental.loopback_runpod import loopback_runpod, rent
from tests.rental.pods import RUNTIME
from tests.rental.rented import wait_until
from tests.rental.skypilot_home import REPOSITORY
from tests.support.waiting import LONG_SECONDS, PATIENCE_SECONDS, read_until

pytestmark = [
    pytest.mark.rental,
    pytest.mark.skipif(why_impossible() is not None, reason=str(why_impossible())),
]

KILLED = """
import sys, time
sys.path.insert(0, {repository!r})
from tests.rental.skypilot_home import loopback_skypilot
with loopback_skypilot([]) as skypilot:
    skypilot.runpod.answer({rent!r})
    print(skypilot.home.parent, flush=True)
    time.sleep(10_000)
"""


@pytest.fixture
def runpod(tmp_path_factory):
    """Pods without SkyPilot."""
    folder = Path(tmp_path_factory.mktemp("pods"))
    (folder / "image" / RUNTIME.lstrip("/")).mkdir(parents=True)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    with loopback_runpod(folder, folder / "image", environment, []) as runpod:
        yield runpod


def test_what_a_pod_writes_stays_in_it_and_goes_with_it(runpod, tmp_path):
    written = tmp_path / "written"
    runpod.answer(rent(f"echo $HOME > ~/home; mkdir -p {tmp_path}; touch {written}; sleep 1000"))
    (pod,) = runpod.pods()
    wait_until(lambda: (pod.home / "home").exists(), "the start script")
    assert (pod.home / "home").read_text() == "/pod\n"
    wait_until(lambda: any("sleep" in line for line in pod.processes().values()), "sleep")
    assert not written.exists()
    runpod.preempt(pod, notice=0.0)
    assert not pod.alive
    assert runpod.pods(None) == []


def test_nothing_outlives_the_tests_even_when_they_are_killed():
    script = KILLED.format(repository=str(REPOSITORY), rent=rent("sleep 1000"))
    tests = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    folder = read_until(tests, "/", seconds=LONG_SECONDS).splitlines()[-1]
    assert session_processes(folder), "an API server, at least"
    tests.kill()
    tests.wait(PATIENCE_SECONDS)
    wait_until(lambda: not Path(folder).exists(), "the end of its folder")
    assert session_processes(folder) == []
