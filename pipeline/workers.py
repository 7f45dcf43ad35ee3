"""Ray Train workers: start them once per `pion run`, in the background, and leave none behind.

Ray owns processes, placement, rendezvous and the restart of dead workers; checkpoints are ours.
`fit()` is started before the data is ready, because it takes half a minute to reach the first line
of the loop; the workers wait there for `prepare` to be committed.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pion.errors import PionError
from pipeline.lifeline import Lifeline, LifelineAddress, LifelineServer, Message
from pipeline.reaper import SESSION_VARIABLE, start_reaper
from pipeline.stages.train import Group, TrainRequest, train_stages

LOOPBACK = "127.0.0.1"


class RayWorkers:
    """The training workers of one `pion run`.

    `messages` carries what the workers say as (rank, message); when `fit()` ends, however it ends,
    a last message of type "fit_ended" follows, with the error if there was one.
    """

    def __init__(self, request: TrainRequest, count: int) -> None:
        self.messages: queue.Queue[tuple[int, Message]] = queue.Queue()
        self._request = request
        self._count = count
        # A short path: Ray puts Unix sockets in it, whose names are limited to 107 bytes.
        self._session = Path(tempfile.mkdtemp(prefix="pion-ray-", dir=_short_temp_dir()))
        self._reaper: subprocess.Popen[bytes] | None = None
        self._lifeline = LifelineServer(LOOPBACK, lambda r, m: self.messages.put((r, m)))
        self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        self._fit_ended = threading.Event()

    def start(self) -> None:
        """Begin starting Ray; returns at once."""
        os.environ[SESSION_VARIABLE] = str(self._session)
        self._reaper = start_reaper(self._session)
        self._thread.start()

    @property
    def connected(self) -> int:
        """Workers that have reached the training loop."""
        return self._lifeline.connected

    def ask_to_stop(self) -> None:
        """Ask the workers to save the last finished step and end."""
        self._lifeline.ask_to_stop()

    def close(self, patience: float = 0.0) -> None:
        """End Ray and every process of its session.

        Waits up to `patience` seconds for `fit()` to end by itself first.
        """
        self._fit_ended.wait(patience)
        self._lifeline.close()
        if self._reaper is not None and self._reaper.stdin is not None:
            # The reaper needs a fraction of a second where ray.shutdown() takes several.
            self._reaper.stdin.close()
            self._reaper.wait()
        shutil.rmtree(self._session, ignore_errors=True)

    def _fit(self) -> None:
        error = ""
        try:
            started = time.monotonic()
            trainer = self._start_ray()
            self.messages.put((-1, _phase("ray started", started)))
            trainer.fit()
        except Exception as exception:  # every way Ray can fail ends up in front of the user
            error = f"{type(exception).__name__}: {exception}"
        self._fit_ended.set()
        self.messages.put((-1, {"type": "fit_ended", "error": error}))

    def _start_ray(self) -> Any:
        for name, value in _ray_environment().items():
            os.environ.setdefault(name, value)
        import ray

        cuda = self._request.gpus > 0
        ray.init(
            address="local",
            _temp_dir=str(self._session),
            _node_ip_address=LOOPBACK,
            num_cpus=max(self._count, os.cpu_count() or 1),
            num_gpus=self._request.gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        for name in ("ray.train", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return TorchTrainer(
            worker_loop,
            train_loop_config={
                "request": self._request.to_dict(),
                "lifeline": asdict(self._lifeline.address),
            },
            torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
            scaling_config=ScalingConfig(num_workers=self._count, use_gpu=cuda),
            run_config=RunConfig(
                # A fresh name and scratch folder: Ray's own run state is never resumed from.
                name="train",
                storage_path=str(self._session / "storage"),
                # A worker that dies is restarted; the train loop counts attempts without progress.
                failure_config=FailureConfig(max_failures=-1),
            ),
        )


def worker_loop(config: dict[str, Any]) -> None:
    """What each Ray worker runs: connect to the driver and train until done or told to stop."""
    import ray.train
    import torch.distributed as dist

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    line = Lifeline(LifelineAddress(**config["lifeline"]), rank)
    request = TrainRequest.from_dict(config["request"])
    group = Group(rank, world_size, distributed=dist.is_initialized() and world_size > 1)
    try:
        line.send({"type": "worker", "pid": os.getpid()})
        outcome = train_stages(request, group, line.send, lambda: line.stop_requested)
        line.send({"type": "trained", "outcome": outcome})
    except PionError as error:
        # Returned, not raised: Ray would restart the workers to hit the same error again.
        line.send({"type": "error", "text": str(error), "exit_code": error.exit_code})
    finally:
        line.close()


def _ray_environment() -> dict[str, str]:
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers share the driver's environment; without this Ray rebuilds it when run by uv.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
    }


def _short_temp_dir() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) < 40 else "/tmp"


def _phase(name: str, started: float) -> Message:
    return {"type": "phase", "name": name, "seconds": time.monotonic() - started}
