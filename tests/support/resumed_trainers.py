"""Trainers that continue from the state of another one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pion.train.trainer import Trainer


def assert_resumed_equals_unbroken(new_trainer: Callable[[], Trainer]) -> None:
    """Check that two steps, and two more by another trainer, end with the bits of four steps."""
    unbroken, first, second = (new_trainer() for _ in range(3))
    for made, steps in ((unbroken, 4), (first, 2)):
        for _ in range(steps):
            assert made.train_step()
    second.load(first.state())
    for _ in range(2):
        assert second.train_step()
    ours, theirs = second.state(), unbroken.state()
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in ours.model)
    for made in (unbroken, first, second):
        made.close()
