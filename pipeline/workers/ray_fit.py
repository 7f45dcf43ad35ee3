"""The process that runs Ray Train for one `pion run`: read the task, start Ray, `fit()`.

Ray owns processes, placement, rendezvous and the restart of dead workers. Checkpoints are Pion's.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.training.train_request import Group, TrainRequest
    from pipeline.workers.lifeline import Lifeline

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers share the driver's environment. Without this, Ray rebuilds it when uv runs it.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # With Ray's 15, everything else on the machine would come before training.
    "RAY_worker_niceness": "0",
}

# The same for a Ray that only trains.
TRAINING_ENVIRONMENT = {
    # Ray would start a Python process per core, and use none: Ray Train's have variables of their
    # own, so Ray starts others for them.
    "RAY_prestart_worker_first_driver": "0",
}

# The same for a number of workers that may change. For up to 20 s after a node was lost, Ray's
# coordinator counts it, and Ray Train waits for it in vain. It then asks again how many there are.
ELASTIC_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
# The same for a Ray of our own. On a machine with much to do, its start takes longer than Ray's own
# limits of 15 to 30 s.
PATIENT_SECONDS = 120
PATIENT_ENVIRONMENT = {
    "RAY_gcs_server_port_wait_time_s": str(PATIENT_SECONDS),
    "RAY_gcs_server_request_timeout_seconds": str(PATIENT_SECONDS),
    "RAY_agent_register_timeout_ms": str(PATIENT_SECONDS * 1000),
    "RAY_worker_register_timeout_seconds": str(PATIENT_SECONDS),
    # Ray gives up a node of which it hears nothing.
    "RAY_health_check_timeout_ms": str(PATIENT_SECONDS * 1000),
}
# How often Ray Train looks whether there is room for more workers.
LOOK_FOR_NODES_SECONDS = 60.0

WAIT_SECONDS = 24 * 3600


def main() -> None:
    """Train as the JSON on standard input says."""
    from pion.usable_cores_and_memory import usable_cores

    task = json.load(sys.stdin)
    elastic = isinstance(task["workers"], list)
    settings = RAY_ENVIRONMENT | TRAINING_ENVIRONMENT | (ELASTIC_ENVIRONMENT if elastic else {})
    own = task["address"] is None
    settings |= PATIENT_ENVIRONMENT if own else {}
    os.environ.update({**settings, **os.environ})  # before Ray is imported, which reads some once
    if own:
        wait_longer_for_the_node()
    import ray  # noqa: F401 (before the thread: two can't import it at once)

    # Ray mostly waits for the processes that it starts, and importing Ray Train takes a second.
    threading.Thread(target=importlib.import_module, args=("pipeline.workers.ray_trainer",)).start()
    cpus = usable_cores() if elastic else max(task["workers"], usable_cores())
    start_ray(task["session"], task["address"], cpus, task["request"]["gpus"])
    fit(task)


def start_ray(session: str, address: str | None, cpus: int, gpus: int) -> None:
    """Connect to the Ray at `address`, or start one of so many CPUs and GPUs. Its files are in
    the folder `session`.

    A new Ray is private to this process only in the environment of `private_environment`.
    """
    import ray

    from pipeline.workers.ray_workers import LOOPBACK, RAY_FOLDER

    if address is not None:
        ray.init(address=address, logging_level=logging.ERROR)
        return
    # A Ray of our own starts neither the server of its pages nor its autoscaler. Both are processes
    # of Python, and `ray.init` waits for the first. On two slow cores, a resumed demo then had its
    # first step after 17.5 s instead of 23.5 s. Ray has no setting for this. With
    # `include_dashboard=False`, the server starts without pages: that stays set, for a Ray whose
    # methods have other names.
    from ray._private.node import Node

    Node.start_api_server = Node.start_monitor = (  # type: ignore[assignment, method-assign]
        lambda *_, **__: None
    )
    ray.init(
        address="local",
        _temp_dir=f"{session}/{RAY_FOLDER}",
        _node_ip_address=LOOPBACK,
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        logging_level=logging.ERROR,
    )


def wait_longer_for_the_node() -> None:
    """Let Ray wait PATIENT_SECONDS for its own node.

    Ray waits 30 s, which is a number in its code and no setting, so its question is replaced by one
    that asks longer.
    """
    from ray._private import services

    ask = services.get_node

    def ask_longer(*which: Any) -> Any:
        until = time.monotonic() + PATIENT_SECONDS
        while True:
            try:
                return ask(*which)
            except RuntimeError:  # not known yet
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    services.get_node = ask_longer


def fit(task: dict[str, Any]) -> None:
    """Run `worker_loop` on every worker until it has returned everywhere."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from pipeline.workers.ray_trainer import Trainer
    from pipeline.workers.rendezvous import PrivateTorch

    cuda = task["request"]["gpus"] > 0
    callbacks: list[Any] = []
    if isinstance(task["workers"], list):
        from pipeline.workers.resize import SaveBeforeResize

        callbacks.append(SaveBeforeResize())
    Trainer(
        worker_loop,
        train_loop_config={"request": task["request"], "lifeline": task["lifeline"]},
        # Rank 0 may wait long for its store, and the others for it. The watchdog finds real hangs.
        backend_config=PrivateTorch(
            backend="nccl" if cuda else "gloo",
            timeout_s=WAIT_SECONDS,
            folder=task["session"] if task["address"] is None else None,
        ),
        scaling_config=ScalingConfig(use_gpu=cuda, **scaling_of(task["workers"])),
        run_config=RunConfig(
            # Scratch space, new each time: nothing resumes from Ray's own run state.
            name="train",
            storage_path=f"{task['session']}/storage",
            failure_config=FailureConfig(max_failures=most_failures(task["workers"])),
            callbacks=callbacks,
        ),
    ).fit()


def scaling_of(workers: int | list[int]) -> dict[str, Any]:
    """Return the fields of Ray Train's ScalingConfig for so many workers, or for a number between
    the fewest and the most that Ray Train itself decides."""
    if isinstance(workers, int):
        return {"num_workers": workers}
    return {
        "num_workers": tuple(workers),
        "elastic_resize_monitor_interval_s": LOOK_FOR_NODES_SECONDS,
    }


def most_failures(workers: int | list[int]) -> int:
    """Return how often Ray Train may restart workers that died.

    The training loop limits attempts without progress; this limits attempts that don't reach the
    loop. Ray Train counts over the whole run, and in a Ray whose nodes come and go, each lost node
    counts.
    """
    return 100 if isinstance(workers, int) else 10_000


def worker_loop(config: dict[str, Any]) -> None:
    """Connect to the driver and train until done or told to stop. Every Ray worker runs this."""
    import ray.train
    import ray.util
    import torch.distributed as dist

    from pipeline.training.train_request import Group, TrainRequest
    from pipeline.workers import resize
    from pipeline.workers.lifeline import Lifeline, LifelineAddress

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    try:
        line = Lifeline(LifelineAddress(**config["lifeline"]), rank)
    except OSError:
        return  # restarted after the driver hung up: nothing to do
    group = Group(rank, world_size, distributed=dist.is_initialized() and world_size > 1)
    # The driver watches its own machine.
    elsewhere = ray.util.get_node_ip_address() != config["lifeline"]["host"]
    end_watch = watch_machine(rank, line) if elsewhere and context.get_local_rank() == 0 else None
    try:
        train(TrainRequest(**config["request"]), group, line)
    finally:
        if end_watch is not None:
            end_watch()
        line.close()
        resize.ended()


def train(request: TrainRequest, group: Group, line: Lifeline) -> None:
    """Train as one of the `group`, and tell the driver how it ends. Raises what a restart of all
    workers may fix."""
    from pion.errors import CardFailed, Interrupted, PionError
    from pipeline.console.messages import Note, Trained, WorkerFailed, WorkerStarted
    from pipeline.state.stores.errors import error_to_json
    from pipeline.training.context import TrainingContext
    from pipeline.training.loop import train_stages
    from pipeline.workers import resize

    try:
        line.send(WorkerStarted(os.getpid()))

        def resized() -> bool:
            # All ranks leave a step as soon as one does. Rank 0 owns the run, and must know that
            # another group continues it. So all wait until rank 0 was asked.
            return group.rank == 0 and resize.is_asked()

        training = TrainingContext(
            request, group, line.send, lambda: line.stop_requested or resized()
        )
        training.is_resized = resized
        training.import_torch()
        outcome = train_stages(training)
        if outcome == "done" or not resize.made_room(lambda: line.stop_requested):
            line.send(Trained(outcome))
    except CardFailed as error:
        line.send(Note(f"worker {group.rank}: {error}"))
        raise  # Ray restarts the workers: in a new process, the card may work
    except PionError as error:
        # Not raised: Ray would restart the workers, and they would fail again.
        if not (isinstance(error, Interrupted) and resize.is_asked() and not line.stop_requested):
            line.send(WorkerFailed(error_to_json(error)))
    except Exception:
        # Ray restarts the workers, but the user must still see what happened.
        line.send(Note(f"worker {group.rank} failed:\n{traceback.format_exc()}"))
        raise


def watch_machine(rank: int, line: Lifeline) -> Callable[[], None] | None:
    """Tell the driver of a notice that this worker's machine will be taken. Return a function that
    ends the watch; None if this machine is in no cloud."""
    from pipeline.console.messages import MachineNotice, Note
    from pipeline.machine.preemption import watch_for_notices

    def tell(text: str, seconds: float) -> None:
        line.send(MachineNotice(f"the machine of worker {rank}: {text}", seconds))

    return watch_for_notices(tell, lambda text: line.send(Note(text)))


if __name__ == "__main__":
    # Workers unpickle worker_loop by name, and their `__main__` is another module.
    from pipeline.workers.ray_fit import main as main_by_name

    main_by_name()
