"""Before Ray Train changes the number of workers, they save the last finished step.

Ray Train ends all workers and starts as many as there is room for. The new ones resume from the
last commit. So without this, each resize would cost the steps since then. A node that is lost gives
no time to save.

The names from `_internal` may change with any Ray: tests/pipeline/workers/test_resize.py tells.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import (
    ResizingState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup

# How long the workers may take. An evaluation comes to its end first, and the save is uploaded. If
# a worker dies or hangs, nobody waits longer. Longer than RESIZE_LINGER of training/saving.py: then
# rank 0 itself says that the store is down.
SAVE_SECONDS = 1800.0
# How long a worker may take after another has ended. After that, it waits for one that failed.
STRAGGLER_SECONDS = 120.0
# How long one question to the workers takes if they have not saved yet.
LOOK_SECONDS = 5.0
# How much later than another worker this one may be asked.
LATE_SECONDS = 30.0

logger = logging.getLogger(__name__)

_asked, _ended = threading.Event(), threading.Event()


# ---------------------------------------------------------------- in a worker


def ask() -> None:
    """Ask this worker to save its last finished step and end."""
    _asked.set()


def is_asked() -> bool:
    """Return whether this worker is to make room for a group of another size."""
    return _asked.is_set()


def made_room(stopped: Callable[[], bool]) -> bool:
    """Return whether this worker, which has saved and ended, was asked to make room, and not
    `stopped` by its driver.

    All workers end at the same step, once the first of them was asked. So the question may not have
    reached this worker yet.
    """
    end = time.monotonic() + LATE_SECONDS
    while not (stopped() or is_asked()) and time.monotonic() < end:
        time.sleep(0.02)
    return is_asked() and not stopped()


def ended() -> None:
    """Say that this worker trains no more."""
    _ended.set()


def has_ended(seconds: float) -> bool:
    """Return whether this worker trains no more, after at most so many seconds."""
    return _ended.wait(seconds)


# ---------------------------------------------------------------- in Ray Train's controller


class SaveBeforeResize(ControllerCallback, WorkerGroupCallback):
    """Holds a resize back until the workers have saved. Ray Train's controller calls it."""

    def __init__(self) -> None:
        self._group: WorkerGroup | None = None

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Remember the workers, which have just started."""
        self._group = worker_group

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Let the workers save if Ray Train is about to end them for a group of another size."""
        if isinstance(current_state, ResizingState) and self._group is not None:
            save_and_end(self._group)


def save_and_end(group: WorkerGroup) -> None:
    """Block until all workers of the group have saved and ended, or can't.

    A worker whose training failed stays alive, and others may wait for it in vain.
    """
    end = time.monotonic() + SAVE_SECONDS
    straggling = False
    try:
        group.execute(ask)
        while time.monotonic() < end:
            waiting: Any = group.execute_async(has_ended, LOOK_SECONDS)
            have_ended = ray.get(waiting, timeout=SAVE_SECONDS)
            if all(have_ended):
                return
            if any(have_ended) and not straggling:
                straggling, end = True, min(end, time.monotonic() + STRAGGLER_SECONDS)
        logger.warning("workers did not end. The next resume from the last commit")
    except RayError:  # a worker died
        logger.warning(
            "workers could not save. The next resume from the last commit", exc_info=True
        )
