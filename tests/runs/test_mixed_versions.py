"""A rental keeps the code it was launched with while the client is upgraded, and the reverse.

A process of one version owns a run. The other version looks at the run, forks it, takes it over in
a hop, and is stopped by the first. Owners are real processes; the older version is commit 0afbd30.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.run.handover import FROM_EPOCH
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.paths import REPOSITORY
from tests.support.states import read
from tests.support.waiting import LONG_SECONDS, PATIENCE_SECONDS, read_until
from tests.support.whole_runs import write_job

OLDER = "434d2b8e"
# Long enough that a test can stop it at any time.
LONG = {
    "sft": None,
    "pretrain__steps": 1_000_000,
    "evaluate__every": 1_000_000,
    "checkpoint__every_seconds": 1.0,
    "hardware__threads": 1,
    "log__every": 200,
}
LONGEST_WAIT = 120.0

pytestmark = pytest.mark.soak


@dataclass(frozen=True)
class Pion:
    """The `pion` of one version, with its own cache, as on its own machine."""

    checkout: Path
    cache: Path

    def start(self, *arguments, **environment):
        # In its children too, the working directory and PYTHONPATH come before installed packages.
        own = {"PYTHONPATH": str(self.checkout), "XDG_CACHE_HOME": str(self.cache)}
        return subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(self.checkout), *arguments],
            cwd=self.checkout,
            env=os.environ | own | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *arguments):
        """Run a command to its end; return what it printed."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=LONGEST_WAIT)
        assert process.returncode == 0, output
        return output


_MAIN = """
import sys
checkout = sys.argv.pop(1)
import pion, pipeline.cli
assert pion.__file__.startswith(checkout), pion.__file__
assert pipeline.cli.__file__.startswith(checkout), pipeline.cli.__file__
sys.exit(pipeline.cli.main())
"""


@pytest.fixture(scope="module")
def older_checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", OLDER], capture_output=True, timeout=LONG_SECONDS
    )
    if archive.returncode != 0:
        why = archive.stderr.decode(errors="replace").strip()
        pytest.skip(f"this clone has no commit {OLDER} ({why}); try git fetch --unshallow")
    untar = ["tar", "-x", "-C", str(folder)]
    subprocess.run(untar, input=archive.stdout, check=True, timeout=LONG_SECONDS)
    return folder


@pytest.fixture(params=["file", "s3"])
def job(request, tmp_path, monkeypatch):
    store = str(tmp_path / "runs")
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        s3.use(monkeypatch)
        store = f"s3://{s3.bucket()}/runs"
    return write_job(tmp_path, store=store, **LONG)


@pytest.fixture(params=["older owns first", "today's owns first"])
def versions(request, older_checkout, tmp_path):
    """The version that owns the run at first, and the other version."""
    older = Pion(older_checkout, tmp_path / "cache-of-older")
    today = Pion(REPOSITORY, tmp_path / "cache-of-today")
    return [older, today] if request.param == "older owns first" else [today, older]


@pytest.fixture
def started():
    """Processes that are killed when the test ends."""
    processes = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate(timeout=PATIENCE_SECONDS)


def test_each_version_sees_forks_takes_over_and_stops_what_the_other_owns(
    job, versions, started, tmp_path
):
    first, second = versions
    run = RunState(open_store(_store_of(job)), "tiny")

    owner = first.start("run", str(job), PION_LAUNCH_ID="launch-1")
    started.append(owner)
    read_until(owner, ": saved", seconds=LONGEST_WAIT)
    seen = json.loads(second("status", run.url, "--json"))
    assert seen["owner"]["pid"] == owner.pid
    assert seen["checkpoint"]["step"] > 0
    second("fork", run.url, "copy")
    for pion in versions:
        rows = json.loads(pion("checkpoints", f"{run.store.url}/copy", "--verify", "--json"))
        assert [row["verified"] for row in rows] == [True]

    head = read(run)
    hop = {"PION_LAUNCH_ID": "launch-2", FROM_EPOCH: str(head.epoch)}
    relief = second.start("run", str(job), **hop)
    started.append(relief)
    said, _ = owner.communicate(timeout=LONGEST_WAIT)
    assert owner.returncode == 4, said
    assert "pion hop" in said
    resumed = read_until(relief, ": saved", seconds=LONGEST_WAIT)
    assert "to save its work and hand the run over" in resumed
    assert "continues after step" in resumed
    head = read(run)
    assert head.owner.pid == relief.pid

    first("stop", run.url, "--wait")
    said, _ = relief.communicate(timeout=LONGEST_WAIT)
    assert relief.returncode == 4, said
    assert "pion stop by" in said
    for pion in versions:
        assert json.loads(pion("status", run.url, "--json"))["stop"]["reason"] == "pion stop"

    again = first.start("run", str(job))
    started.append(again)
    resumed = read_until(again, ": saved", seconds=LONGEST_WAIT)
    assert "continues after step" in resumed
    assert "ALARM" not in resumed
    again.send_signal(signal.SIGTERM)
    said, _ = again.communicate(timeout=LONGEST_WAIT)
    assert again.returncode == 75, said


def _store_of(job):
    from pipeline.job.file import load_job

    return load_job(job).store
