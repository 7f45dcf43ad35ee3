"""How fast this model trained in earlier runs, read from the runs of a store."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pion.errors import PionError
from pipeline.job import Job
from pipeline.job.digest import model_inputs
from pipeline.machine.gpus import sky_names
from pipeline.machine.time_limit import within
from pipeline.state.find_run import runs_in
from pipeline.state.metrics import lines_of, read_events
from pipeline.state.records import Head
from pipeline.state.rows import metrics_row
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store, open_store

# The model's fields that its speed does not depend on. Rows have their own length.
NOT_ABOUT_SPEED = frozenset(
    f"model.{name}"
    for name in ("seq_len", "rope_theta", "norm_eps", "init_std", "tie_embeddings", "family")
)
# How many of an attempt's newest metrics files are read. The speed hardly changes.
SEGMENTS = 3
# How many seconds reading a store may take.
SECONDS = 4.0
# How many of the store's runs are read, the most recent first.
RUNS = 10


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one worker in one attempt of `run`. `device` is CUDA's name.

    `lora`: whether the model was frozen and had additions.
    """

    run: str
    device: str
    seq_len: int
    tokens_per_second: float
    lora: bool = False


def past_speeds(job: Job) -> list[Speed]:
    """Return the speeds that this job's model reached in its store, the most recent run first.

    Return nothing if the store can't be read in time: callers then assume a speed.
    """
    try:
        return within(SECONDS, partial(_speeds, job))
    except (PionError, TimeoutError):
        return []


def _speeds(job: Job) -> list[Speed]:
    model = model_inputs(job.model_config_resolved())
    shape = {path: value for path, value in model.items() if path not in NOT_ABOUT_SPEED}
    store = open_store(job.store)
    heads = list(runs_in(store).items())[-RUNS:]
    return [s for name, head in reversed(heads) for s in _of_run(store, name, head, shape)]


def speed_on(speeds: list[Speed], gpu: str, seq_len: int, *, lora: bool) -> Speed | None:
    """Return the median attempt of the newest run that trained rows of `seq_len` on this GPU.

    `lora` is whether a frozen model with additions was trained, or all weights.
    """
    fit = [
        s for s in speeds if (s.seq_len, s.lora) == (seq_len, lora) and gpu in sky_names(s.device)
    ]
    newest = sorted((s for s in fit if s.run == fit[0].run), key=lambda s: s.tokens_per_second)
    return newest[len(newest) // 2] if newest else None


def _of_run(store: Store, name: str, head: Head, shape: Mapping[str, Any]) -> Iterator[Speed]:
    run = RunState(store, name)
    inputs = {stage: _inputs(run, head, stage) for stage in ("pretrain", "sft")}
    fitting = {stage for stage, of_stage in inputs.items() if shape.items() <= of_stage.items()}
    if not fitting:
        return
    for event in read_events(store, name):
        if event["event"] != "training" or event["stage"] not in fitting:
            continue
        reached = _tokens_per_second(store, f"{name}/metrics/{event['stage']}/{event['epoch']}/")
        if reached is not None and "seq_len" in event:  # the first runs did not report seq_len
            per_worker = reached / max(1, event.get("workers", 1))
            device = event.get("device", "")
            lora = "sft.lora.rank" in inputs[event["stage"]]
            yield Speed(name, device, event["seq_len"], per_worker, lora)


def _inputs(run: RunState, head: Head, stage: str) -> Mapping[str, Any]:
    """Return what the run's stage trains, or trained, by the paths of a digest's inputs."""
    record = head.stages.get(stage)
    digests = [record.digest] if record else []
    digests += [entry.digest for entry in head.checkpoints if entry.stage == stage]
    kept = run.read_stage(stage, digests[0]) if digests else None
    return {} if kept is None else kept["inputs"]


def _tokens_per_second(store: Store, folder: str) -> float | None:
    """Return the median speed in a folder's newest metrics; None if there is none."""
    keys = sorted(e.key for e in store.list(folder) if e.key.endswith(".jsonl"))[-SEGMENTS:]
    rows = [metrics_row(line) for key in keys for line in lines_of(store, key) or ()]
    speeds = [row["tokens_per_second"] for row in rows if row and row.get("tokens_per_second")]
    return statistics.median(speeds) if speeds else None
