"""A node of a Ray cluster is lost: workers restart on the remaining nodes, from the last save.

An elastic group trains with fewer workers meanwhile, and grows again.
"""

import os
import sys

import pytest

from pipeline.state.rows.metrics import read_all_metrics
from pipeline.state.stores import open_store
from pipeline.workers.ray_workers import RAY_ADDRESS
from tests.support.ray_cluster import ray_cluster
from tests.support.waiting import run_to_end
from tests.support.whole_runs import (
    ends_with,
    events_of,
    head_of,
    interrupt,
    rows_trained,
    start,
    wait_for,
    write_job,
)

ONE_THREAD_EACH = {"hardware__threads": 1, "log__every": 1, "sft": None}


@pytest.fixture
def nodes(monkeypatch):
    """Start a cluster whose first node has one CPU; yield its other nodes."""
    with ray_cluster(monkeypatch, 1) as nodes:
        yield nodes


@pytest.mark.soak
def test_a_lost_node_costs_no_committed_step(tmp_path, nodes):
    nodes.add()
    often = {"checkpoint__every_steps": 10, "pretrain__steps": 400}
    job = write_job(tmp_path, hardware__workers=2, **often, **ONE_THREAD_EACH)
    process = start(job)
    wait_for(process, ": saved", lines=2)
    committed = head_of(tmp_path).checkpoints[0].step
    nodes.lose()
    nodes.add()
    ends_with(0, process)
    assert rows_trained(tmp_path, "pretrain") == [[4 * s, 4 * s + 4] for s in range(400)]
    starts = [event["from_step"] for event in events_of(tmp_path, "training")]
    assert len(starts) >= 2
    assert starts[-1] >= committed


@pytest.mark.soak
@pytest.mark.parametrize("sharded", [False, True])
def test_a_group_trains_without_a_lost_node_and_grows_when_it_is_back(tmp_path, nodes, sharded):
    nodes.add()
    nodes.add()
    group = {"hardware__workers": [2, 3], "hardware__fsdp": sharded}
    long = {"checkpoint__every_seconds": 2, "pretrain__steps": 1_000_000}
    job = write_job(tmp_path, **group, **long, **ONE_THREAD_EACH)
    process = start(job)
    wait_for(process, ": saved", lines=2)
    committed = head_of(tmp_path).checkpoints[0].step
    nodes.lose()
    assert "hop: 3 × " in wait_for(process, "first row")
    wait_for(process, ": saved", lines=2)
    nodes.add()
    assert "hop: 2 × " in wait_for(process, "first row")
    wait_for(process, ": saved", lines=2)
    interrupt(process)

    starts = events_of(tmp_path, "training")
    assert [event["workers"] for event in starts] == [3, 2, 3]
    assert starts[1]["from_step"] >= committed > 0
    # The group saved before it grew, so no step was trained again.
    *_, with_two, _ = epochs = steps_by_epoch(tmp_path)
    assert starts[2]["from_step"] == max(epochs[with_two])
    steps = head_of(tmp_path).checkpoints[0].step
    assert rows_trained(tmp_path, "pretrain") == [[4 * s, 4 * s + 4] for s in range(steps)]
    receipts = [line for event in events_of(tmp_path, "hop") for line in event["receipt"]]
    assert [line for line in receipts if line.startswith("micro_batch")] == [
        f"micro_batch × grad_accum × workers: {change}, 128 tokens per step as before"
        for change in ("2×1×3 → 2×1×2", "2×1×2 → 2×1×3")
    ]
    assert sum("= last + 1" in line for line in receipts) == 2
    assert not [line for line in receipts if "ALARM" in line]


# Ask for a CPU of each node, as the next elastic run would, and print how many there are for it.
RESERVE = """
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    ResourceRequestPriority, get_or_create_autoscaling_coordinator)
import sys
ray.init(address=sys.argv[1], log_to_driver=False)
coordinator = get_or_create_autoscaling_coordinator()
ray.get(coordinator.request_resources.remote(
    "next", [{"CPU": 1}] * 2, 60, priority=ResourceRequestPriority.HIGH))
reserved = ray.get(coordinator.get_reserved_resources.remote("next"))
print("reserved", sum(node["CPU"] for node in reserved.values()))
"""


@pytest.mark.soak
def test_a_group_that_ends_leaves_its_nodes_to_the_next_run(tmp_path, nodes):
    nodes.add()
    job = write_job(tmp_path, hardware__workers=[1, 2], sft=None, pretrain__steps=1_000_000)
    process = start(job, "log.every=1")
    wait_for(process, "pretrain step 3/")
    interrupt(process)
    assert [event["workers"] for event in events_of(tmp_path, "training")] == [2]
    asked = run_to_end([sys.executable, "-c", RESERVE, os.environ[RAY_ADDRESS]], check=True)
    assert asked.stdout.splitlines()[-1] == "reserved 2"


def steps_by_epoch(folder):
    """Return the steps that each attempt trained, in the order of the attempts."""
    steps = {}
    for row in read_all_metrics(open_store(str(folder / "runs")), "tiny", "pretrain"):
        steps.setdefault(row["epoch"], []).append(row["step"])
    return dict(sorted(steps.items()))
