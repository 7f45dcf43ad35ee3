"""When workers start: before or after `prepare`, and what follows if their Ray did not."""

import dataclasses
import queue
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from pion.errors import BadInput, Interrupted, PionError
from pipeline.console.messages import FitEnded
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.run import advance
from pipeline.run.advance import Advance
from pipeline.run.done_and_changed_stages import plan_stages
from pipeline.run.inputs import RunOptions, Start
from pipeline.run.journal import Journal
from pipeline.run.preemption_stop import PreemptionStop
from pipeline.run.signals import StoppingOnSignals
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.training import loop
from pipeline.workers import cluster_size
from pipeline.workers import ray_workers as ray_workers_module
from pipeline.workers.cluster_size import Cluster
from pipeline.workers.ray_workers import RAY_ADDRESS
from tests.support.jobs import SilentDisplay
from tests.support.states import someone
from tests.support.whole_runs import write_job


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("address", "here", "in_ray", "workers", "order"),
    [
        ("10.0.0.1:6399", 0, 0, 2, ["prepare", "workers"]),  # each worker holds a CPU
        ("10.0.0.1:6399", 8, 8, 2, ["workers", "prepare"]),  # each worker holds a GPU, and no CPU
        # The machine that starts the run need not have a GPU of that Ray.
        ("10.0.0.1:6399", 0, 8, 2, ["workers", "prepare"]),
        (None, 0, 0, 2, ["workers", "prepare"]),  # the tasks have a Ray of their own
        # Of elastic workers, the GPUs of that Ray decide, not those of this machine.
        ("10.0.0.1:6399", 8, 0, [1, 2], ["prepare", "workers"]),
        ("10.0.0.1:6399", 0, 8, [1, 2], ["workers", "prepare"]),
    ],
)
def test_workers_that_hold_cpus_start_once_the_data_is_prepared(
    address, here, in_ray, workers, order, tmp_path, time, monkeypatch
):
    did = []

    def do(what):
        did.append(what)
        if len(did) == 2:
            raise Stop

    def start_workers(*arguments, **named):
        do("workers")

    monkeypatch.setattr(advance, "start_workers", start_workers)
    monkeypatch.setattr(cluster_size, "gpu_count", lambda: here)
    monkeypatch.setattr(cluster_size, "ask", lambda address: Cluster(in_ray, 64))
    monkeypatch.setattr(Advance, "_prepare", lambda self: do("prepare"))
    if address is None:
        monkeypatch.delenv(RAY_ADDRESS, raising=False)
    else:
        monkeypatch.setenv(RAY_ADDRESS, address)
    start = a_start(tmp_path, time, workers)
    claim = claim_run(start.run, start.owner, take_over=True)
    this = Advance(start, claim, Journal(start, claim, SilentDisplay()))
    plans = {p.stage: p for p in plan_stages(start.job, start.digests, claim.head)}
    with pytest.raises(Stop):
        this._prepare_and_train(plans)
    assert did == order


@pytest.mark.parametrize(
    ("workers", "rented", "ends"),
    [
        (1, False, "trains here"),
        (1, True, "trains here"),
        (2, False, PionError),
        (2, True, Interrupted),  # exit code 75: the next machine goes on
    ],
)
def test_if_ray_does_not_start_one_worker_does_without_and_several_end(
    workers, rented, ends, tmp_path, time, monkeypatch
):
    tried = []

    def ray_workers(request, count):
        tried.append(count)
        messages = queue.Queue()
        messages.put((-1, FitEnded("The current node timed out during startup")))
        return SimpleNamespace(
            messages=messages,
            log=tmp_path / "log",
            shared=False,
            started=0.0,
            close=lambda: None,
        )

    def train_here(context):
        raise Stop

    monkeypatch.delenv(RAY_ADDRESS, raising=False)
    monkeypatch.setattr(ray_workers_module, "RayWorkers", ray_workers)
    monkeypatch.setattr(advance, "training_here", lambda *arguments: None)
    monkeypatch.setattr(loop, "train_stages", train_here)
    monkeypatch.setattr(Advance, "_prepare", lambda self: None)
    start = a_start(tmp_path, time, workers)
    if rented:
        start = dataclasses.replace(start, owner=someone(launch_id="7"))
    claim = claim_run(start.run, start.owner, take_over=True)
    said, shown = [], []
    journal = Journal(start, claim, SilentDisplay())
    monkeypatch.setattr(journal, "note", said.append)
    monkeypatch.setattr(journal, "say", shown.append)
    plans = {p.stage: p for p in plan_stages(start.job, start.digests, claim.head)}
    with pytest.raises(Stop if ends == "trains here" else ends) as ended:
        Advance(start, claim, journal)._prepare_and_train(plans)
    assert shown[0].what == "Ray starts its workers"
    if ends == "trains here":
        assert tried == [1]
        assert shown[0].detail == "hardware.workers=0 trains without Ray"
        assert "Ray did not start: The current node timed out during startup" in said[0]
        assert "trains without Ray, as with hardware.workers=0" in said[0]
    else:
        assert tried == [2]
        assert "The current node timed out during startup" in str(ended.value)
        assert ended.value.exit_code == (75 if rented else 1)
        assert "Everything committed is safe" in str(ended.value)


def test_a_mix_that_the_prepared_rows_can_not_give_is_refused_before_workers_start(
    tmp_path, time, monkeypatch
):
    def go(qa):
        phases = [{"until": 10, "mix": {"web": 1}}, {"mix": {"web": 1, "qa": qa}}]
        sources = [text | {"name": name} for name in ("web", "qa")]
        changes = {"data__sources": sources, "pretrain__phases": phases, "sft": None}
        start = a_start(tmp_path, time, 2, **changes)
        claim = claim_run(start.run, start.owner, take_over=True)
        this = Advance(start, claim, Journal(start, claim, SilentDisplay()))
        if not claim.head.stages:
            this._prepare()
        this._prepare_and_train(
            {p.stage: p for p in plan_stages(start.job, start.digests, claim.head)}
        )

    text = {"kind": "text", "path": "text", "split": "paragraph"}
    monkeypatch.setattr(advance, "start_workers", Mock(side_effect=Stop))
    with pytest.raises(Stop):
        go(1)
    with pytest.raises(BadInput, match=r"pretrain\.phases\.1\.mix: 9x qa .* Nothing was trained"):
        go("9x")


def a_start(folder, time, workers, **changes):
    """Return the start of a run whose stages are all to do."""
    job = load_job(write_job(folder, hardware__workers=workers, **changes))
    run = RunState(FileStore(folder / "runs"), job.name, time.clock())
    stopping = StoppingOnSignals(SilentDisplay())
    preemption_stop = PreemptionStop(stopping, lambda text: None)
    return Start(
        job, RunOptions(), digest_job(job), run, someone(), stopping, 0.0, None, preemption_stop
    )
