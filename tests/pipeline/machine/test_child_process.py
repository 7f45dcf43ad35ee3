"""Which keys of the environment reach the processes that Pion starts. The processes are real."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pion.errors import BadInput, PionError
from pipeline.machine.child_process import TRAINING, in_child, of_store, without_secrets
from pipeline.machine.gpus import gpu_count
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.state.checkpoints.uploader import Uploader
from pipeline.state.owner import checkout
from tests.support.waiting import PATIENCE_SECONDS, wait_until

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA-of-a-test",
    "AWS_SECRET_ACCESS_KEY": "secret-of-s3",
    "AWS_SESSION_TOKEN": "session-of-s3",
    "HF_TOKEN": "hf_of-a-test",
    "WANDB_API_KEY": "of-wandb",
    "RUNPOD_API_KEY": "of-runpod",
    "MY_DATABASE": "postgres://me:my-password@db.example.org/x",
}
ORDINARY = {
    "AWS_CA_BUNDLE": "/etc/ca.pem",
    "AWS_ENDPOINT_URL": "https://s3.example.org",
    "HTTPS_PROXY": "http://proxy.example.org:3128",
    "SSL_CERT_FILE": "/etc/ca.pem",
    "LD_PRELOAD": "",
    "LD_LIBRARY_PATH": "/usr/lib/none",
    "CUDA_VISIBLE_DEVICES": "",
    "NCCL_DEBUG": "WARN",
    "OMP_NUM_THREADS": "1",
    "PION_LAUNCH_ID": "launch",
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in {**SECRETS, **ORDINARY}.items():
        monkeypatch.setenv(name, value)


def of_process(pid):
    """Return the environment that a running process was started with."""
    file = Path(f"/proc/{pid}/environ")
    wait_until(file.read_bytes, "the process has an environment")  # the kernel sets it last
    entries = file.read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def known(environment):
    return SECRETS.keys() & environment.keys()


S3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


@pytest.mark.parametrize(
    ("store", "needed"), [("file:///runs", set()), ("s3://a/b", S3), ("hf://a/b", {"HF_TOKEN"})]
)
def test_an_uploader_gets_only_the_keys_of_its_kind_of_store(store, needed):
    uploader = Uploader(Snapshot(), store)
    try:
        found = of_process(uploader._process.pid)
    finally:
        uploader.close()
    assert known(found) == needed
    assert ORDINARY.items() <= found.items()


@pytest.mark.parametrize("program", ["git", "nvidia-smi"])
def test_a_program_that_answers_a_question_gets_no_key(tmp_path, monkeypatch, program):
    said, fake = tmp_path / "environment", tmp_path / program
    fake.write_text(f"#!/bin/sh\nenv >> {said}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if program == "git":
        checkout(tmp_path)
    else:
        gpu_count()
    printed = said.read_text()
    assert "PATH=" in printed
    assert not [name for name, value in SECRETS.items() if value in printed]


def test_workers_that_train_get_the_keys_of_stores_and_trackers():
    kept = without_secrets(*TRAINING)
    assert known(kept) == {*S3, "HF_TOKEN", "WANDB_API_KEY"}
    assert ORDINARY.items() <= kept.items()


def test_a_proxy_with_a_password_is_only_for_processes_that_use_a_network():
    proxy = {"https_proxy": "http://me:my-password@proxy.example.org:3128"}
    assert of_store("s3://a/b", proxy) == proxy
    assert of_store("runs", proxy) == {}


# ---------------------------------------------------------------- work in a child


def refuse():
    raise BadInput("there is no such job")


def die():
    os._exit(9)


def keys():
    return os.getpid(), known(os.environ)


def test_what_the_child_raises_is_raised_here():
    with pytest.raises(BadInput, match="there is no such job"):
        in_child(refuse)


def test_a_child_that_dies_is_an_error_and_the_next_one_works():
    with pytest.raises(PionError, match="ended before it had an answer"):
        in_child(die)
    pid, known_there = in_child(keys)
    assert pid != os.getpid()
    assert known_there == {*S3, "HF_TOKEN"}, "the keys of stores"
    assert multiprocessing.active_children() == []


def say_and_hang(folder):
    Path(folder, "new").write_text(str(os.getpid()))
    Path(folder, "new").rename(Path(folder, "pid"))
    threading.Event().wait(PATIENCE_SECONDS)


HANGS = """
import sys
from pipeline.machine.child_process import in_child
from tests.pipeline.machine.test_child_process import say_and_hang

in_child(say_and_hang, sys.argv[1])
"""


def test_ctrl_c_waits_for_no_child_and_leaves_none(tmp_path):
    command = ["env", "--default-signal=INT", sys.executable, "-c", HANGS, str(tmp_path)]
    parent = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_until((tmp_path / "pid").exists, "the child")
        child = int((tmp_path / "pid").read_text())
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: the child gets it, too
        _, said = parent.communicate(timeout=PATIENCE_SECONDS / 2)
    finally:
        parent.kill()
        parent.wait(PATIENCE_SECONDS)
    assert said.count("Traceback") == 1, "the child says nothing"
    assert not Path(f"/proc/{child}").exists()
