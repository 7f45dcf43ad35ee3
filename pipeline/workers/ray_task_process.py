"""The process that does the work of a RayTasks: start Ray, hand out tasks, return their results."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# For each core, one task at work and one that waits.
TASKS_PER_CORE = 2
# The memory that a task may need: Python and the tokenizer, and a piece as text and as ids.
TASK_BYTES = 700_000_000


def main() -> None:
    """Do the work that comes through the pipe, until it closes."""
    from pion.usable_cores_and_memory import usable_cores, usable_memory
    from pipeline.workers.ray_fit import RAY_ENVIRONMENT, start_ray

    pipe, (session, address) = Connection(int(sys.argv[1])), sys.argv[2:]
    os.environ.update({**RAY_ENVIRONMENT, **os.environ})
    start_ray(session, address or None, most_tasks(usable_cores(), usable_memory()), 0)
    try:
        pipe.send(("started", None))
        while True:
            work, shared = pipe.recv()
            _map(pipe, work, shared)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def most_tasks(cores: int, memory: int) -> int:
    """Return how many tasks may work at once with so many cores and bytes of memory."""
    return max(1, min(cores, memory // TASK_BYTES))


def _map(pipe: Connection, work: Callable[[Any, Any], Any], shared: Any) -> None:
    """Return the results in the order of the items, which are asked for as there is room."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=3)(do)
    reference = ray.put(shared)
    waiting: deque[Any] = deque()
    more = True
    while more or waiting:
        # Nodes may join, and may be lost.
        most = TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while more and len(waiting) < most:
            pipe.send(("next", None))
            item = pipe.recv()
            more = bool(item)
            waiting += [task.remote(work, reference, one) for one in item]
        if waiting:
            done, value = ray.get(waiting.popleft())
            pipe.send(("result" if done else "failed", value))
            if not done:
                for other in waiting:
                    ray.cancel(other, force=True)
                return
    pipe.send(("end", None))


def do(work: Callable[[Any, Any], Any], shared: Any, item: Any) -> tuple[bool, Any]:
    """Return whether the work was done, and its result, or the error as JSON. Each task runs it."""
    # A task has one core. Libraries read this when they first need threads.
    os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    from pion.errors import PionError
    from pipeline.state.stores.errors import error_to_json

    try:
        return True, work(shared, item)
    except PionError as error:
        return False, error_to_json(error)


if __name__ == "__main__":
    # Tasks unpickle `do` by name, and their `__main__` is another module.
    from pipeline.workers.ray_task_process import main as main_by_name

    main_by_name()
