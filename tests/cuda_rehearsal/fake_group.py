"""Pretend that this process is one of several ranks. Nothing is sent, and nobody answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextlib.contextmanager
def fake_group(world_size: int) -> Iterator[None]:
    """Make this process a rank of `world_size` inside the `with` block, around `pretended_card`."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    new_group = dist.new_group

    def fake_instead(backend: str, timeout: Any) -> Any:
        return new_group(backend="fake")  # gloo would look for the other ranks

    try:
        with mock.patch.object(dist, "new_group", fake_instead):
            yield
    finally:
        dist.destroy_process_group()
