"""How the workers of a training find each other: torch's rendezvous and process group.

torch's usual rendezvous listens on every address of the machine, even if it is told 127.0.0.1, and
asks nobody for a token. On one machine, the workers meet in a file instead. Between machines, they
meet at a socket that is bound to the address between the nodes.

Only the workers import torch. Two processes that start before the workers read this module too:
the one that starts Ray, and Ray Train's controller. torch takes each of them seconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import Backend, BackendConfig

if TYPE_CHECKING:
    import torch.distributed as dist

# How long a worker tries to reach the first worker's socket.
CONNECT_SECONDS = 300.0
# How long the workers may take to leave their group. Ray Train then ends their processes.
LEAVE_SECONDS = 30.0

# The store that `listen` has opened in this process.
_listening: list[dist.Store] = []


@dataclass(frozen=True)
class Meeting:
    """Where `count` workers meet: in a new `file`, or `at` a socket (host, port).

    `seconds` is how long they may wait for each other, then and in every step.
    """

    count: int
    seconds: float
    file: str | None = None
    at: tuple[str, int] | None = None


def listen(address: str, count: int) -> tuple[str, int]:
    """Open the socket at which `count` workers meet, in the first worker; return where it is.

    Raises OSError if `address` does not belong to this machine.
    """
    import torch.distributed as dist

    listener = socket.create_server((address, 0))
    port: int = listener.getsockname()[1]
    _listening[:] = [
        dist.TCPStore(
            address,
            port,
            count,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
    ]
    return address, port


def join(meeting: Meeting, rank: int, backend: str, address: str) -> None:
    """Make this process one of the group: worker `rank`, on the node with this `address`."""
    import torch.distributed as dist

    # As Ray Train does: when NCCL fails, the worker ends, and Ray starts another.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    _stay_on_interface(address, on_one_machine=meeting.file is not None)
    store = _store(meeting, rank)
    waiting = timedelta(seconds=meeting.seconds)
    store.set_timeout(waiting)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=meeting.count, timeout=waiting
    )


def leave() -> None:
    """Leave the group, if this process is in one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with this address, such as lo or eth0."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses):
            return name
    return None


def _store(meeting: Meeting, rank: int) -> dist.Store:
    import torch.distributed as dist

    if meeting.file is not None:
        return dist.FileStore(meeting.file, meeting.count)
    if rank == 0:
        return _listening.pop()
    assert meeting.at is not None
    connecting = timedelta(seconds=CONNECT_SECONDS)
    return dist.TCPStore(*meeting.at, meeting.count, timeout=connecting, wait_for_workers=False)


def _stay_on_interface(address: str, *, on_one_machine: bool) -> None:
    """Let Gloo and NCCL listen on the interface of `address` alone.

    Between machines, an interface that the environment names has priority.
    """
    # NCCL's own monitor listens on a fixed port and asks nobody for a token.
    os.environ["NCCL_RAS_ENABLE"] = "0"
    interface = interface_of(address)
    if interface is None:
        return
    # "=": NCCL would take eth1 as the beginning of eth10, too.
    for name, value in (("GLOO_SOCKET_IFNAME", interface), ("NCCL_SOCKET_IFNAME", f"={interface}")):
        if on_one_machine or not os.environ.get(name):
            os.environ[name] = value


@contextmanager
def on_own_card() -> Iterator[None]:
    """Train on the card that Ray Train gave this worker. Each sees all cards of its node."""
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


@dataclass
class PrivateTorch(BackendConfig):
    """How the workers become one group of torch's `backend`: gloo or nccl.

    They meet in a new file in `folder`, or, if unset, at a socket between nodes. `timeout_s` is how
    long they may wait for each other.
    """

    backend: str
    timeout_s: float
    folder: str | None = None

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that Ray Train calls when workers start and end."""
        return _PrivateBackend

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[None]]:
        """The context in which each worker trains."""
        return on_own_card


class _PrivateBackend(Backend):
    # As Ray Train's own: NCCL needs to see the cards of the others.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Make the workers, which have just started, one process group."""
        assert isinstance(backend_config, PrivateTorch)
        count = len(worker_group)
        if count == 1:
            return  # has nobody to talk to
        addresses = worker_group.execute(ray.util.get_node_ip_address)
        if backend_config.folder is not None:
            file, at = f"{backend_config.folder}/meeting-{uuid.uuid4().hex}", None
        else:
            file = None
            at = worker_group.execute_single(0, listen, addresses[0], count)
        meeting = Meeting(count, backend_config.timeout_s, file, at)
        joining: Any = [
            worker_group.execute_single_async(
                rank, join, meeting, rank, backend_config.backend, address
            )
            for rank, address in enumerate(addresses)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Let the workers leave their group before their processes end."""
        if len(worker_group) > 1:
            with contextlib.suppress(GetTimeoutError):
                leaving: Any = worker_group.execute_async(leave)
                ray.get(leaving, timeout=LEAVE_SECONDS)
