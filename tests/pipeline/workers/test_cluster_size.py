"""What a job whose number of workers may change needs of the Ray that it trains in."""

import socket

import pytest

from pion.errors import BadInput
from pipeline.run.preflight import preflight, require_a_row_each, what_workers_take, worker_count
from pipeline.workers import cluster_size
from pipeline.workers.cluster_size import (
    Cluster,
    ask,
    cluster_of,
    gpus_of_workers,
    require_room_for_fewest,
)
from pipeline.workers.ray_workers import RAY_ADDRESS
from tests.support.jobs import tiny_job, write_tiny_data

HERE = "127.0.0.1:6379"


def test_on_one_machine_the_number_of_workers_is_fixed(tmp_path, monkeypatch):
    monkeypatch.delenv(RAY_ADDRESS, raising=False)
    write_tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as refused:
        preflight(tiny_job(hardware__workers=[2, 16], store=f"{tmp_path}/runs"))
    assert str(refused.value) == (
        "hardware.workers [2, 16]: the number of workers can change only in a Ray that already "
        "runs, and PION_RAY_ADDRESS is not set. Nothing was started. Set "
        "PION_RAY_ADDRESS=HOST:PORT to the address of your Ray, or train on this machine alone: "
        "hardware.workers=2."
    )


@pytest.mark.parametrize(
    ("there", "has", "fix"),
    [
        (Cluster(gpus=1, cpus=64), "has 1 GPU", ", or set hardware.workers=[1,16]."),
        (Cluster(gpus=0, cpus=1), "has 1 CPU", ", or set hardware.workers=[1,16]."),
        (Cluster(gpus=0, cpus=0), "has 0 CPUs", "--address=127.0.0.1:6379."),
    ],
)
def test_a_ray_without_room_for_the_fewest_workers_is_refused(there, has, fix):
    with pytest.raises(BadInput) as refused:
        require_room_for_fewest(tiny_job(hardware__workers=[2, 16]), there, HERE)
    message = str(refused.value)
    assert message.startswith(f"hardware.workers [2, 16]: the Ray at {HERE} {has}, and each worker")
    assert "Nothing was started. Add nodes: ray start --address=127.0.0.1:6379" in message
    assert message.endswith(fix)


def test_the_most_workers_need_not_be_there_yet():
    job = tiny_job(hardware__workers=[2, 16])
    require_room_for_fewest(job, Cluster(gpus=2, cpus=0), HERE)
    require_room_for_fewest(job, Cluster(gpus=0, cpus=2), HERE)


@pytest.mark.parametrize("address", ["no-port", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_that_is_none_is_refused(monkeypatch, address):
    monkeypatch.setenv(RAY_ADDRESS, address)
    with pytest.raises(BadInput, match=rf"PION_RAY_ADDRESS: the Ray at {address} can't be reached"):
        cluster_of(tiny_job(hardware__workers=[2, 16]))


def test_a_port_at_which_nobody_listens_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(BadInput, match=r"can't be reached.*Nothing was started.*HOST:PORT"):
        ask(f"127.0.0.1:{port}")


def test_a_ray_that_never_says_what_it_has_is_refused(monkeypatch):
    monkeypatch.setattr(cluster_size, "CONNECT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BadInput, match=r"not say what it has within 0\.05 s.*Nothing was star"):
            ask(address)


def test_workers_that_take_cpus_are_said_before_the_run_starts(monkeypatch):
    monkeypatch.setenv(RAY_ADDRESS, HERE)
    job = tiny_job(hardware__workers=[2, 16])
    assert what_workers_take(job, Cluster(gpus=2, cpus=64)) == []
    assert what_workers_take(job, Cluster(gpus=0, cpus=64)) == [
        "hardware.workers [2, 16]: the Ray at 127.0.0.1:6379 has no GPU, so each worker takes a "
        "CPU. This run will not use GPUs that come later: add a node that has one first, then "
        "start again"
    ]


@pytest.mark.parametrize(
    ("workers", "here", "in_ray", "train"),
    [
        (None, 2, 16, 16),  # all GPUs of that Ray, of which two are in this machine
        (None, 0, 16, 16),
        (None, 0, 0, 1),
        (4, 0, 16, 4),
        ([2, 8], 0, 16, 8),
    ],
)
def test_the_gpus_of_a_running_ray_decide_who_trains(workers, here, in_ray, train, monkeypatch):
    """A machine without a GPU may start the run. It would not train on that Ray's CPUs."""
    monkeypatch.setenv(RAY_ADDRESS, HERE)
    monkeypatch.setattr(cluster_size, "gpu_count", lambda: here)
    monkeypatch.setattr(cluster_size, "ask", lambda address: Cluster(in_ray, 64))
    job = tiny_job(hardware__workers=workers)
    assert worker_count(job) == train
    assert gpus_of_workers(job) == in_ray


def test_only_the_gpus_of_this_machine_count_if_no_ray_is_named(monkeypatch):
    monkeypatch.delenv(RAY_ADDRESS, raising=False)
    monkeypatch.setattr(cluster_size, "gpu_count", lambda: 2)
    assert worker_count(tiny_job(hardware__workers=None)) == 2


@pytest.mark.parametrize(("workers", "here"), [(0, 0), (0, 2), (4, 2)])
def test_a_ray_whose_answer_would_change_nothing_is_not_asked(workers, here, monkeypatch):
    monkeypatch.setenv(RAY_ADDRESS, "192.0.2.1:6379")  # nobody can be reached there
    monkeypatch.setattr(cluster_size, "gpu_count", lambda: here)
    job = tiny_job(hardware__workers=workers)
    assert (worker_count(job), gpus_of_workers(job)) == (workers, here)


def test_the_most_workers_need_a_row_each():
    job = tiny_job(hardware__workers=[2, 16], pretrain__global_batch=8, sft=None)
    require_a_row_each(job, 8)
    with pytest.raises(BadInput) as refused:
        require_a_row_each(job, 16)
    assert str(refused.value) == (
        "pretrain.global_batch 8 is less than one row for each of the 16 workers. Nothing was "
        "started. Set hardware.workers=[2,8]."
    )
