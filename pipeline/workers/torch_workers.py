"""How Ray Train starts torch on each worker: with Pion's rendezvous instead of Ray's."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import BackendConfig
from ray.train.torch.config import TorchConfig, _TorchBackend

from pipeline.workers import rendezvous


@dataclass
class PrivateTorch(TorchConfig):
    """How the workers meet: in a new file in `folder`, or, if unset, at a socket between nodes."""

    folder: str | None = None

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The class that Ray Train calls when workers start and end."""
        return _PrivateBackend


class _PrivateBackend(_TorchBackend):
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Make the workers, which have just started, one process group."""
        assert isinstance(backend_config, PrivateTorch)
        assert backend_config.backend is not None
        count = len(worker_group)
        if count == 1:
            return  # has nobody to talk to
        addresses = worker_group.execute(ray.util.get_node_ip_address)
        if backend_config.folder is not None:
            file, at = f"{backend_config.folder}/meeting-{uuid.uuid4().hex}", None
        else:
            file = None
            at = worker_group.execute_single(0, rendezvous.listen, addresses[0], count)
        meeting = rendezvous.Meeting(count, backend_config.timeout_s, file, at)
        joining: Any = [
            worker_group.execute_single_async(
                rank, rendezvous.join, meeting, rank, backend_config.backend, address
            )
            for rank, address in enumerate(addresses)
        ]
        ray.get(joining)
