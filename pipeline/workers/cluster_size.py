"""What a running Ray has, for training whose number of workers changes with it.

python -m pipeline.workers.cluster_size ADDRESS
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.console.formats import counted
from pipeline.job import Job
from pipeline.machine.child_process import without_secrets
from pipeline.machine.gpus import gpu_count
from pipeline.workers.ray_fit import RAY_ENVIRONMENT
from pipeline.workers.ray_workers import RAY_ADDRESS, last_words

# How long a Ray's port may take to answer.
ANSWER_SECONDS = 10.0
# How long it may take to connect to that Ray, from the start of Python on.
CONNECT_SECONDS = 60.0


@dataclass(frozen=True)
class Cluster:
    """The GPUs and CPUs of all nodes of a Ray."""

    gpus: int
    cpus: int


def cluster_of(job: Job) -> Cluster:
    """Return what the Ray has in which the workers of an elastic job train.

    Raises BadInput if there is no such Ray, if nobody can reach it, and if it has no room for the
    fewest workers.
    """
    hardware, address = job.hardware, os.environ.get(RAY_ADDRESS)
    said = f"hardware.workers {hardware.workers_in_words}"
    if not address:
        raise BadInput(
            f"{said}: the number of workers can change only in a Ray that already runs, and "
            f"{RAY_ADDRESS} is not set. Nothing was started. Set {RAY_ADDRESS}=HOST:PORT to the "
            f"address of your Ray, or train on this machine alone: "
            f"hardware.workers={hardware.min_workers}."
        )
    cluster = ask(address)
    require_room_for_fewest(job, cluster, address)
    return cluster


def gpus_of_workers(job: Job) -> int:
    """Return how many GPUs there are for the workers of a job: this machine's, or those of the Ray
    that runs already.

    Raises BadInput as `cluster_of`, and if nobody can reach that Ray.
    """
    hardware, address, here = job.hardware, os.environ.get(RAY_ADDRESS), gpu_count()
    if hardware.elastic:
        return cluster_of(job).gpus
    # It takes seconds to ask a Ray. With a number of workers, it only matters whether it has GPUs,
    # and the GPUs of this machine are in it.
    if not address or hardware.workers == 0 or (hardware.workers is not None and here):
        return here
    return ask(address).gpus


def require_room_for_fewest(job: Job, cluster: Cluster, address: str) -> None:
    """Raise BadInput if the Ray at `address` has no room for the fewest workers of the job."""
    hardware, (fewest, most) = job.hardware, (job.hardware.min_workers, job.hardware.max_workers)
    assert fewest is not None
    # In a Ray with GPUs, each worker takes one. In a Ray without, each takes a CPU.
    kind, there = ("GPU", cluster.gpus) if cluster.gpus else ("CPU", cluster.cpus)
    if there < fewest:
        smaller = f", or set hardware.workers=[{there},{most}]" if there else ""
        raise BadInput(
            f"hardware.workers {hardware.workers_in_words}: the Ray at {address} has "
            f"{counted(there, kind)}, and each worker needs one. Nothing was started. Add nodes: "
            f"ray start --address={address}{smaller}."
        )


@functools.cache
def ask(address: str) -> Cluster:
    """Return what the Ray at `address` (host:port) has now. Raises BadInput if it can't be
    reached."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, str(error)) from None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.workers.cluster_size", address],
            env=without_secrets("RAY_") | RAY_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=CONNECT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        why = f"it did not say what it has within {CONNECT_SECONDS:g} s"
        raise _unreachable(address, why) from None
    if done.returncode != 0:
        raise _unreachable(address, last_words(done.stderr))
    return Cluster(**json.loads(done.stdout.splitlines()[-1]))


def _unreachable(address: str, why: str) -> BadInput:
    return BadInput(
        f"{RAY_ADDRESS}: the Ray at {address} can't be reached ({why}). Nothing was started. Set "
        f"{RAY_ADDRESS} to the HOST:PORT that `ray start --head` printed, and RAY_AUTH_MODE and "
        "RAY_AUTH_TOKEN as that Ray has them."
    )


def main() -> None:
    """Print what the Ray has, as JSON."""
    import ray

    ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
    there = ray.cluster_resources()
    print(json.dumps({"gpus": int(there.get("GPU", 0)), "cpus": int(there.get("CPU", 0))}))


if __name__ == "__main__":
    main()
