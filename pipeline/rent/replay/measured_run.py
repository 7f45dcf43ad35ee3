"""What a job's run has measured that a replay can use, read from the run's store.

Its metrics have the tokens per second. Its events have its machines, the seconds of each phase of a
start, and the cost of its saves. HEAD has the size of a checkpoint.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from pion.errors import PionError
from pipeline.cost.timeline import WAITED
from pipeline.job import Job
from pipeline.machine.rented import AT_HOME, RENTED
from pipeline.rent.replay.options import Number
from pipeline.state.metrics import Row, read_events, read_metrics
from pipeline.state.recorded_job import recorded_job
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store

# The phase measured from the start of `pion run`.
FIRST_STEP = "first step"
UNUSUAL = {"prepare", WAITED}


@dataclass
class MeasuredRun:
    """What this job's run has measured; `missing` says why there is nothing.

    `tokens_per_second` is the sum of all workers, on `nodes` machines with `count` GPUs each.
    """

    missing: str = ""
    tokens_per_second: dict[str, Number] = field(default_factory=dict)
    gpu: str | None = None
    count: int = 1
    nodes: int = 1
    starts: list[dict[str, float]] = field(default_factory=list)
    saves: list[Row] = field(default_factory=list)
    checkpoint_bytes: int | None = None


def measured_run(job: Job) -> MeasuredRun:
    """Return what this job's run has measured, if it has run and its store can be read."""
    try:
        store = open_store(job.store)
        run = RunState(store, job.name)
        head = run.read()
        if head is None:
            return MeasuredRun(f"there is no run {job.name} in {store.url}")
        then = recorded_job(run, head)
        if then is None:
            return MeasuredRun(f"run {job.name} has no record of its job")
        if then.model_config_resolved() != job.model_config_resolved():
            return MeasuredRun(f"run {job.name} trained another model")
        events = read_events(store, job.name)
        rows = {stage: read_metrics(store, job.name, head, stage) for stage in job.train_stages}
    except PionError as error:
        return MeasuredRun(f"the run can't be read: {error}")
    trained = [event for event in events if event["event"] == "training"]
    rented = [event for event in events if event["event"] == RENTED and event.get("gpu")]
    devices = {event["epoch"]: str(event.get("device")) for event in trained}
    found = MeasuredRun(
        gpu=str(rented[-1]["gpu"]) if rented else None,
        starts=_starts(events),
        saves=[event for event in events if event["event"] == "saved" and _is_timed(event)],
        checkpoint_bytes=head.checkpoints[0].bytes if head.checkpoints else None,
    )
    for stage, stage_rows in rows.items():
        speeds = [(row["epoch"], row["tokens_per_second"]) for row in stage_rows if _is_step(row)]
        if speeds:
            newest = [speed for epoch, speed in speeds if epoch == speeds[-1][0]]
            words = f"{len(newest):,} steps of {stage} on {devices.get(speeds[-1][0], 'a machine')}"
            found.tokens_per_second[stage] = Number(statistics.median(newest), words)
    reached = [row["epoch"] for each in rows.values() for row in each if _is_step(row)]
    if reached:
        gpu, found.count, found.nodes = _machine_of(max(reached), events)
        found.gpu = gpu or found.gpu
    if not found.tokens_per_second:
        found.missing = f"run {job.name} has not trained yet"
    return found


def _is_timed(save: Row) -> bool:
    return None not in (save["stall"], save["write"])


def _is_step(row: Row) -> bool:
    return bool(row.get("tokens_per_second"))


def _machine_of(epoch: int, events: Sequence[Row]) -> tuple[str | None, int, int]:
    """Return the GPU, the GPUs per node, and the nodes that `epoch` trained on. On a machine that
    was not rented, the GPUs are its workers."""
    before = [event for event in events if event["epoch"] <= epoch]
    claims = [event for event in before if event["event"] in (RENTED, AT_HOME)]
    if claims and claims[-1]["event"] == RENTED:
        machine = claims[-1]
        return machine.get("gpu"), machine.get("count") or 1, machine.get("nodes") or 1
    trained = [e for e in before if e["event"] == "training" and e["epoch"] == epoch]
    workers = [e.get("workers", 1) for e in trained]
    return None, max([1, *workers[-1:]]), 1


def _starts(events: Sequence[Row]) -> list[dict[str, float]]:
    """Return the seconds of each phase, for every process that began to train. Leave out processes
    that first waited or prepared data, because their phases overlap."""
    found: dict[int, dict[str, float]] = {}
    for event in events:
        if event["event"] == "phase":
            found.setdefault(event["epoch"], {}).setdefault(event["name"], event["seconds"])
    return [start for start in found.values() if FIRST_STEP in start and not UNUSUAL & start.keys()]
