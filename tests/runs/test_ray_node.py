"""A node of a Ray cluster is lost: workers restart on the remaining nodes, from the last save."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.state.rows.metrics import read_events
from pipeline.state.stores import open_store
from pipeline.workers.ray_fit import RAY_ENVIRONMENT
from pipeline.workers.ray_workers import RAY_ADDRESS, private_environment
from pipeline.workers.reaper import SESSION_VARIABLE, start_reaper
from tests.support.waiting import PATIENCE_SECONDS, read_until
from tests.support.whole_runs import ends_with, head_of, rows_trained, start, wait_for, write_job

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 1, "temp_dir": sys.argv[1], "node_ip_address": "127.0.0.1",
    "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
print("address", cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(other, allow_graceful=False)
    other = cluster.add_node(num_cpus=1)
    print("replaced", flush=True)
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Two nodes of one CPU each. A line to the process replaces the second node."""
    session = Path(tempfile.mkdtemp(prefix="pion-ray-", dir="/tmp"))
    reaper = start_reaper(session)
    access = private_environment({})
    # Ray writes its address here. With a `temp_dir` for all nodes, no node makes the folder.
    (session / "ray").mkdir()
    here = {"RAY_TMPDIR": str(session), SESSION_VARIABLE: str(session)}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(session)],
        env=os.environ | RAY_ENVIRONMENT | access | here,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address = read_until(process, "address").split()[-1]
    for name, value in {**access, RAY_ADDRESS: address}.items():
        monkeypatch.setenv(name, value)
    yield process
    assert reaper.stdin is not None
    reaper.stdin.close()
    reaper.wait(PATIENCE_SECONDS)
    process.wait(PATIENCE_SECONDS)


@pytest.mark.soak
def test_a_lost_node_costs_no_committed_step(
    tmp_path: Path, cluster: subprocess.Popen[str]
) -> None:
    job = write_job(
        tmp_path,
        hardware__workers=2,
        hardware__threads=1,
        checkpoint__every_steps=10,
        log__every=1,
        sft=None,
        pretrain__steps=400,
    )
    process = start(job)
    wait_for(process, ": saved", lines=2)
    committed = head_of(tmp_path).checkpoints[0].step
    assert cluster.stdin is not None
    cluster.stdin.write("replace\n")
    cluster.stdin.flush()
    ends_with(0, process)
    assert rows_trained(tmp_path, "pretrain") == [[4 * s, 4 * s + 4] for s in range(400)]
    events = read_events(open_store(str(tmp_path / "runs")), "tiny")
    starts = [event["from_step"] for event in events if event["event"] == "training"]
    assert len(starts) >= 2
    assert starts[-1] >= committed
