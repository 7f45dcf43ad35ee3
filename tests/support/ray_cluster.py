"""A Ray cluster of several nodes on this machine, which runs of a test connect to."""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from pipeline.workers.ray_fit import RAY_ENVIRONMENT
from pipeline.workers.ray_workers import RAY_ADDRESS, private_environment
from pipeline.workers.reaper import SESSION_VARIABLE, start_reaper
from tests.support.waiting import PATIENCE_SECONDS, read_until

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
session, *cpus = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": int(cpus[0]), "temp_dir": session, "node_ip_address": "127.0.0.1",
    "include_dashboard": False})
others = [cluster.add_node(num_cpus=int(count)) for count in cpus[1:]]
print("address", cluster.address, flush=True)
for line in sys.stdin:
    if line == "add\\n":
        others.append(cluster.add_node(num_cpus=int(cpus[-1])))
    else:
        cluster.remove_node(others.pop(), allow_graceful=False)
    print("done", line, flush=True)
"""


class Nodes:
    """The nodes of a cluster but the first. A node that is added is like the last of the start."""

    def __init__(self, process):
        self._process = process

    def add(self):
        self._tell("add")

    def lose(self):
        """Kill the newest node's raylet, which ends its workers, with SIGKILL."""
        self._tell("lose")

    def _tell(self, what):
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        read_until(self._process, f"done {what}")


@contextmanager
def ray_cluster(monkeypatch, *cpus):
    """Start a node for each of these numbers of CPUs."""
    session = Path(tempfile.mkdtemp(prefix="pion-ray-", dir="/tmp"))
    reaper = start_reaper(session)
    access = private_environment({})
    # Ray writes its address here. With a `temp_dir` for all nodes, no node makes the folder.
    (session / "ray").mkdir()
    here = {"RAY_TMPDIR": str(session), SESSION_VARIABLE: str(session)}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(session), *map(str, cpus)],
        env=os.environ | RAY_ENVIRONMENT | access | here,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = read_until(process, "address").split()[-1]
        for name, value in {**access, RAY_ADDRESS: address}.items():
            monkeypatch.setenv(name, value)
        yield Nodes(process)
    finally:
        assert reaper.stdin is not None
        reaper.stdin.close()
        reaper.wait(PATIENCE_SECONDS)
        process.wait(PATIENCE_SECONDS)
