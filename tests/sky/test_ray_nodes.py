"""The script for several nodes, started as SkyPilot starts it, twice on this machine."""

import functools
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from pipeline.state.rows.metrics import read_events
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from pipeline.workers.ray_fit import RAY_ENVIRONMENT
from pipeline.workers.reaper import children_of, session_processes
from tests.paths import REPOSITORY
from tests.support import waiting
from tests.support.doors import listening, own_address
from tests.support.jobs import tiny_dict, write_tiny_data
from tests.support.waiting import PATIENCE_SECONDS, run_to_end


@dataclass
class Nodes:
    """Two nodes with one CPU worker each. `start` runs the script as the node of that rank."""

    folder: Path
    job: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, rank):
        log = (self.folder / f"node-{rank}.log").open("ab")
        process = subprocess.Popen(
            ["bash", str(REPOSITORY / "sky" / "ray_nodes.sh"), str(self.job)],
            cwd=self.folder,
            env=self.environment | {"SKYPILOT_NODE_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def lose(self, process):
        """Kill a node without warning. Its reaper ends the rest of its Ray."""
        process.kill()
        process.wait(PATIENCE_SECONDS)

    def log(self, rank):
        path = self.folder / f"node-{rank}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self):
        return list(read_events(open_store(f"{self.folder}/runs"), "tiny"))


@pytest.fixture
def nodes(tmp_path):
    import yaml

    write_tiny_data(tmp_path)
    job = tiny_dict(
        store=f"{tmp_path}/runs",
        sft=None,
        pretrain__steps=400,
        checkpoint__every_steps=20,
        hardware__threads=1,
        log__every=10,
    )
    job = {key: value for key, value in job.items() if value is not None}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("pipeline", "pion"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nodes = Nodes(
        tmp_path,
        path,
        os.environ
        | {
            "SKYPILOT_NODE_IPS": f"{own_address()}\n{own_address()}",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NUM_GPUS_PER_NODE": "0",
            "SKYPILOT_TASK_ID": "sky-managed-test",
            "PION_RAY_PORT": str(port),
            "PION_RAY_TOKEN": secrets.token_hex(32),
        },
    )
    yield nodes
    for process in nodes.started:
        if process.poll() is None:
            nodes.lose(process)


def check_sockets(nodes):
    """Check that all that listens on every address belongs to Ray, which asks for the token."""
    family = children_of(set(session_processes(nodes.environment["PION_RAY_TOKEN"])))
    sockets = listening(family)
    here = [each for each in sockets if each.address == own_address()]
    everywhere = [each for each in sockets if ip_address(each.address).is_unspecified]
    workers, others = "ray::RayTrainWorker", {"gcs_server", "raylet", "python"}
    rendezvous_and_gloo = [each for each in here if each.program == workers]
    assert len(rendezvous_and_gloo) == 1 + 2 * 3, sockets  # ranks train, and agree about saves
    assert len([each for each in everywhere if each.program == workers]) == 2, sockets
    names = {each.program for each in everywhere if not each.program.startswith("ray::")}
    assert names == others, sockets
    assert 44217 not in {each.port for each in sockets}, "Ray's monitor asks for no token"


def test_without_a_token_no_ray_is_started(nodes):
    del nodes.environment["PION_RAY_TOKEN"]
    for rank in (0, 1):
        assert nodes.start(rank).wait(PATIENCE_SECONDS) == 2
        assert "--secret PION_RAY_TOKEN=$(openssl rand -hex 32)" in nodes.log(rank)
        assert "ray:" not in nodes.log(rank)


def test_ray_has_the_settings_that_it_has_on_one_machine():
    script = (REPOSITORY / "sky" / "ray_nodes.sh").read_text()
    settings = dict(re.findall(r"\b(RAY_(?!AUTH)\w+)=(\w+)", script))
    assert settings.items() <= RAY_ENVIRONMENT.items()
    assert "RAY_worker_niceness" in settings


@pytest.mark.soak
def test_two_nodes_train_together_and_the_loss_of_one_is_survived(nodes):
    def logs():
        return f"{nodes.log(0)}\n---- other node\n{nodes.log(1)}"

    wait_until = functools.partial(waiting.wait_until, what=logs, seconds=500, every=0.5)

    head = nodes.start(0)
    wait_until(lambda: "meet at" in nodes.log(0) or head.poll() is not None)
    worker = nodes.start(1)
    wait_until(lambda: ": saved" in nodes.log(0) or head.poll() is not None)
    assert head.poll() is None, logs()
    started = [event for event in nodes.events() if event["event"] == "training"]
    assert [event["workers"] for event in started] == [2]

    check_sockets(nodes)
    state = RunState(open_store(f"{nodes.folder}/runs"), "tiny").read()
    committed = state.checkpoints[0].step
    nodes.lose(worker)
    again = nodes.start(1)
    wait_until(lambda: head.poll() is not None)
    assert head.returncode == 0, logs()
    resumed = [event for event in nodes.events() if event["event"] == "training"]
    assert [event["workers"] for event in resumed] == [2, 2]
    assert int(str(resumed[1]["from_step"])) >= committed > 0

    wait_until(lambda: again.poll() is not None)
    assert again.returncode == 0, "a node whose head is done has done its part"
    left = run_to_end(["pgrep", "-f", str(nodes.environment["PION_RAY_PORT"])])
    assert left.stdout == "", "Ray's processes outlive the job"


@pytest.mark.soak
def test_a_node_whose_head_never_comes_up_waits_for_it(nodes):
    worker = nodes.start(1)

    def waits():
        """Return whether the node has looked for the head, and sleeps before it looks again."""
        return any(child.name() == "sleep" for child in psutil.Process(worker.pid).children())

    waiting.wait_until(waits, "the node to wait for its head")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 75
