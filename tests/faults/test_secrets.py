"""Tokens and keys appear in nothing that failing runs print, write, store, publish or list."""

import base64
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from tests.support.changing_folder import files_below
from tests.support.forked import ForkedRun, may_fork
from tests.support.hub_server import USER, WRITE_TOKEN, hub_server
from tests.support.meddling import Meddling
from tests.support.s3_server import FaultProxy
from tests.support.waiting import kill_tree
from tests.support.whole_runs import RUN_SECONDS, write_job

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "secretaccesskey0123456789/unmistakable",
    "AWS_SESSION_TOKEN": "sessiontoken0123456789+unmistakable==",
    "HF_TOKEN": WRITE_TOKEN,
    "WANDB_API_KEY": "wandbkey0123456789unmistakable",
}

EVERYONE_MAY = 0  # the umask with which everyone may read what a run makes


@dataclass
class Traces:
    """The output and files of failing runs, by where they were found, and the modes of files."""

    codes: list[int] = field(default_factory=list)
    found: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)

    def run(self, name, start, temporary):
        """Run what `start` starts. During the run, record its processes' command lines, and keep
        Ray's files, which Ray deletes at the end."""
        links = Path(tempfile.mkdtemp(dir=temporary))
        listed = set()
        with tempfile.TemporaryFile() as output:
            process = start(output)
            end = time.monotonic() + RUN_SECONDS
            while process.poll() is None and time.monotonic() < end:
                listed |= set(_command_lines(process.pid))
                _keep_files_of_ray(temporary, links)
                time.sleep(0.2)
            said = os.pread(output.fileno(), os.fstat(output.fileno()).st_size, 0)
        if process.returncode is None:
            kill_tree(process.pid)
            raise AssertionError(f"{name} did not end in {RUN_SECONDS:g} s:\n{said.decode()}")
        self.codes.append(process.returncode)
        self.found[f"{name}: output"] = said
        self.found[f"{name}: processes"] = "\n".join(sorted(listed)).encode()
        for path in links.rglob("*"):
            if path.is_file():
                self.found[f"{name}: {path.relative_to(links)}"] = path.read_bytes()
        shutil.rmtree(links)

    def holding(self, secret):
        """Return where the secret is, in any spelling."""
        spellings = {secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()}
        return [
            where
            for where, content in self.found.items()
            if any(spelling.encode() in content for spelling in spellings)
        ]


def _keep_files_of_ray(temporary, links):
    """Link the logs of Ray's sessions and workers, so that they survive when Ray deletes them."""
    sessions = [path for folder in temporary.glob("pion-ray-*") for path in files_below(folder)]
    for path in [*sessions, *temporary.glob("pion-workers-*.log")]:
        link = links / path.relative_to(temporary)
        # Most files are linked already, and Ray may delete any of them now.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link)


def _command_lines(pid):
    try:
        parent = psutil.Process(pid)
        return [" ".join(p.cmdline()) for p in (parent, *parent.children(recursive=True))]
    except psutil.Error:
        return []  # the process has just ended


@pytest.fixture(scope="module")
def hub():
    with hub_server() as hub:
        yield hub


@pytest.fixture(scope="module")
def traces(s3, hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "tmp").mkdir()
    return traces_of(s3, hub, folder, folder / "tmp", workers=0)


def with_a_bug(folder):
    bug = Meddling(folder)
    fails = "def wrapper(*arguments): raise RuntimeError('a bug that nobody knows yet')"
    bug.wrap("pipeline.run.advance:write_run_report", fails)
    # The start before has shown that transformers loads the model.
    bug.wrap("pion.formats.verify:verify_export", "def wrapper(*arguments): return 0.0")
    return bug


def traces_of(s3, hub, folder, temporary, workers):
    """Return the traces of three starts of one run: saving is forbidden, publishing is forbidden,
    and a bug."""
    bucket = s3.bucket()
    name = f"tiny-{workers}"
    repo = f"{USER}/{name}"
    small = {"evaluate__rows": 2, "evaluate__final_rows": 2, "evaluate__prompts": []}
    job = write_job(
        folder,
        name=name,
        store=f"s3://{bucket}/runs",
        sft=None,
        hardware__workers=workers,
        checkpoint={"every_steps": 5, "linger": 0},
        publish={"to": f"hf://{repo}", "license": "apache-2.0"},
        **small,
    )
    traces = Traces()
    with FaultProxy(s3.url) as proxy:
        environment = os.environ | proxy.environment() | hub.environment(folder / "hf") | SECRETS
        environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(temporary)}
        pion = ["run", str(job)]

        def fork(output):
            assert may_fork(environment)
            return ForkedRun(pion, folder, environment, EVERYONE_MAY, output)

        def start(output):
            """Start a new process: so what Python and its packages write then is found."""
            return subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", *pion],
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                umask=EVERYONE_MAY,
            )

        proxy.fail("PUT .*checkpoints", times=1, status=400, code="ExpiredToken")
        proxy.fail("PUT .*checkpoints", kind="reset", times=1)
        proxy.fail("PUT .*checkpoints", times=1000, after=8, status=403, code="AccessDenied")
        traces.run("forbidden to save", fork, temporary)
        proxy.clear()
        hub.fail("POST .*/commit/", status=403, times=1)
        traces.run("forbidden to publish", fork, temporary)
        environment["PYTHONPATH"] = with_a_bug(folder).environment()["PYTHONPATH"]
        traces.run("a bug", start if workers else fork, temporary)
    for place in {folder, temporary}:
        for path in place.rglob("*"):
            traces.modes[str(path.relative_to(place))] = path.stat().st_mode & 0o777
            if path.is_file():
                traces.found[f"file {path.relative_to(place.parent)}"] = path.read_bytes()
    client = s3.client()
    for item in client.list_objects_v2(Bucket=bucket)["Contents"]:
        stored = client.get_object(Bucket=bucket, Key=item["Key"])
        traces.found[f"object {item['Key']}"] = (
            stored["Body"].read() + str(stored["Metadata"]).encode()
        )
    published = hub.repos["model", repo].at("main")
    for name, file in published.files.items():
        traces.found[f"published {name}"] = file.content
    return traces


def test_the_runs_failed_as_expected(traces):
    """Otherwise the other tests here check nothing."""
    assert traces.codes == [74, 2, 1], traces.found
    assert b"access was denied" in traces.found["forbidden to save: output"]
    assert b"denied access (403)" in traces.found["forbidden to publish: output"]
    assert b"this is a bug" in traces.found["a bug: output"]
    for name in ("cache/", "tmp/pion-bug-", "HEAD.json", "/events/", "published README.md"):
        assert any(name in where for where in traces.found), name
    assert any(b"pipeline.state.checkpoints.uploader" in text for text in traces.found.values())


@pytest.mark.parametrize("name", SECRETS)
def test_no_trace_of_a_failing_run_holds_a_secret(traces, name):
    assert traces.holding(SECRETS[name]) == []


def test_copies_of_the_run_and_bug_files_are_for_this_user_alone(traces):
    assert traces.modes["cache/pion"] == 0o700
    assert traces.modes["cache/pion/runs"] == 0o700
    bugs = {path: mode for path, mode in traces.modes.items() if "pion-bug-" in path}
    assert bugs
    assert set(bugs.values()) == {0o600}


@pytest.mark.soak
def test_no_trace_of_failing_ray_workers_holds_a_secret(s3, hub, tmp_path):
    # Ray's sockets are in this folder, so its name must be short.
    with tempfile.TemporaryDirectory(prefix="pion-", dir="/tmp") as temporary:
        traces = traces_of(s3, hub, tmp_path, Path(temporary), workers=1)
    assert traces.codes == [74, 2, 1], traces.found
    for name in ("logs/raylet.out", "logs/gcs_server.out", "logs/worker-", "pion-workers-"):
        assert any(name in where for where in traces.found), name
    for secret in SECRETS.values():
        assert traces.holding(secret) == []
