"""A node of a Ray cluster is lost: workers restart on the remaining nodes, from the last save."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.state.rows.metrics import read_events
from pipeline.state.stores import open_store
from tests.support.ray_cluster import ray_cluster
from tests.support.whole_runs import ends_with, head_of, rows_trained, start, wait_for, write_job


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Two nodes of one CPU each. A line to the process replaces the second node."""
    with ray_cluster(monkeypatch, 1, 1) as process:
        yield process


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
