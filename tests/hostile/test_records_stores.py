"""Stores whose files are pipes, devices, endless or not what a list says; S3 and the Hub too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pion.errors import BadInput
from pion.untrusted import LARGEST_RECORD
from pipeline.state.checkpoints.layout import MANIFEST, MODEL, OPTIMIZER
from pipeline.state.claim import claim_run
from pipeline.state.record_json import Damaged
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, open_store
from tests.hostile.attacks import DEPTH, nested
from tests.hostile.hostile_run import NAME, make_hostile_run, make_run_in, path_of
from tests.hostile.in_process import NO_FILES, ends_with, pion
from tests.hostile.records import SFT
from tests.support.hub_server import USER, hub_server
from tests.support.states import someone


def huge(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


UNUSUAL = {kind: NO_FILES[kind] for kind in ("pipe", "link to a device")} | {"huge": huge}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "runs"
    make_hostile_run(folder)
    return folder


@pytest.fixture
def run(template, tmp_path):
    return RunState(FileStore(shutil.copytree(template, tmp_path / "runs")), NAME)


def put(run, path, make: Callable[[Path], object]):
    place = path_of(run, path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    make(place)


# ---------------------------------------------------------------- a folder


@pytest.mark.parametrize("what", UNUSUAL)
@pytest.mark.parametrize("command", ["status", "checkpoints", "report", "stop"])
def test_a_head_that_is_no_file_is_damaged(run, what, command):
    put(run, "HEAD.json", UNUSUAL[what])
    output = ends_with(2, command, run.url)
    assert f"{NAME}/HEAD.json is damaged: it " in output
    assert "is not a regular file" in output or "has more than 16,777,216 bytes" in output


@pytest.mark.parametrize("what", UNUSUAL)
@pytest.mark.parametrize("name", [MANIFEST, MODEL, OPTIMIZER, "state.json"])
def test_a_file_of_a_checkpoint_that_is_no_file_is_found(run, what, name):
    put(run, f"{SFT}/{name}", UNUSUAL[what])
    output = ends_with(1, "checkpoints", run.url, "--verify")
    assert name in output
    assert output.count("verified now") == 1


@pytest.mark.parametrize("what", UNUSUAL)
def test_a_file_of_no_bytes_in_a_manifest_is_not_read_without_end(run, what):
    manifest = path_of(run, f"{SFT}/{MANIFEST}")
    listed = json.loads(manifest.read_text())
    listed["files"]["config.json"]["size"] = 0  # the size of a pipe and of a device
    manifest.write_text(json.dumps(listed))
    put(run, f"{SFT}/config.json", UNUSUAL[what])
    output = ends_with(2, "generate", f"{run.url}@sft", "--prompt", "a")
    assert "config.json" in output


@pytest.mark.parametrize("what", ["pipe", "link to a device"])
@pytest.mark.parametrize(
    "path", ["owner/1.json", "requests/1.json", "rental.json", "events/1/0.jsonl", "jobs/0123.yaml"]
)
def test_other_files_that_are_no_files_end_no_status(run, what, path):
    put(run, path, UNUSUAL[what])
    ends_with(0, "status", run.url)


def test_a_link_to_itself_is_not_listed(run):
    put(run, "events/1/0.jsonl", NO_FILES["link to itself"])
    ends_with(0, "status", run.url)
    put(run, "HEAD.json", NO_FILES["link to itself"])
    ended = pion("status", run.url, memory=None)
    assert ended.code in (1, 2)
    assert "HEAD.json" in ended.out + ended.err


# ---------------------------------------------------------------- S3 and the Hub


@pytest.fixture(params=["s3", "hub"])
def remote(request, tmp_path, monkeypatch):
    """The run in a bucket, and in a repository on the Hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        s3.use(monkeypatch)
        yield make_run_in(open_store(f"s3://{s3.bucket()}/runs"))
        return
    with hub_server() as hub:
        hub.add_repo(f"{USER}/runs")
        hub.use(monkeypatch, tmp_path / "hf")
        yield make_run_in(open_store(f"hf://{USER}/runs"))


def test_hostile_contents_of_a_remote_store(remote):
    for path in ("owner/1.json", "requests/1.json", "rental.json", "events/1/7.jsonl"):
        remote.store.write(remote.key(path), nested(DEPTH).encode())
    remote.store.write(remote.key("events/x/1.jsonl"), b"\xff\n[]")
    remote.store.flush()
    output = ends_with(0, "status", remote.url)
    assert "a request was ignored" in output
    assert "2 rows of metrics and events could not be read" in output
    version = remote.store.read_versioned(remote.key("HEAD.json"))[1]
    for data, why in (
        (nested(DEPTH).encode(), "nested deeper than 64 levels"),
        (b"[" + b" " * LARGEST_RECORD + b"]", "it has more than 16,777,216 bytes"),
    ):
        remote.store.delete(remote.key("HEAD.json"))
        remote.store.write(remote.key("HEAD.json"), data)
        remote.store.flush()
        for command in ("status", "checkpoints", "report", "stop"):
            output = ends_with(2, command, remote.url)
            assert f"{NAME}/HEAD.json is damaged" in output
            assert why in output
        with pytest.raises(BadInput, match=r"HEAD\.json is damaged"):
            claim_run(remote, someone())
    assert version


def test_a_download_never_writes_more_than_the_manifest_says(remote, tmp_path):
    key = f"{SFT}/{MODEL}"
    remote.store.write(remote.key(key), b"x" * 2_000_000)
    remote.store.flush()
    output = ends_with(2, "generate", f"{remote.url}@sft", "--prompt", "a")
    assert f"{MODEL} has more than" in output
    copies = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in copies) < 1_000_000


def test_a_damaged_record_is_no_missing_record(run):
    """Otherwise a claim could begin a run from nothing."""
    put(run, "HEAD.json", NO_FILES["pipe"])
    with pytest.raises(Damaged, match="it is not a regular file"):
        claim_run(run, someone())
    with pytest.raises(Damaged):
        run.store.compare_and_swap(run.key("HEAD.json"), b"{}", None)
