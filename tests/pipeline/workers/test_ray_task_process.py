"""How many tasks the process of a RayTasks has at work, without a Ray."""

import sys
from multiprocessing import Pipe
from threading import Thread
from types import SimpleNamespace

import pytest

from pipeline.workers.ray_task_process import TASK_BYTES, TASKS_PER_CORE, _map, do, most_tasks


@pytest.mark.parametrize(
    ("cores", "memory", "tasks"),
    [(8, 1000 * TASK_BYTES, 8), (64, 10 * TASK_BYTES, 10), (4, TASK_BYTES // 2, 1)],
)
def test_there_are_no_more_tasks_than_cores_and_than_fit_the_memory(cores, memory, tasks):
    assert most_tasks(cores, memory) == tasks


class Growing:
    """Stands for a Ray of one core that has `more` cores once two results are taken."""

    def __init__(self, more):
        self.cores, self.more, self.waiting, self.most, self.taken = 1, more, 0, 0, 0

    def remote(self, **options):
        return lambda work: SimpleNamespace(remote=self._start)

    def _start(self, *arguments):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return arguments

    def put(self, value):
        return value

    def get(self, arguments):
        self.waiting -= 1
        self.taken += 1
        if self.taken == 2:
            self.cores += self.more
        return do(*arguments)

    def cluster_resources(self):
        return {"CPU": float(self.cores)}


def add(shared, item):
    return shared + item


def test_a_node_that_joins_later_gets_tasks(monkeypatch):
    ray = Growing(more=4)
    monkeypatch.setitem(sys.modules, "ray", ray)
    mine, theirs = Pipe()
    thread = Thread(target=_map, args=(theirs, add, 10))
    thread.start()
    items, results = iter(range(40)), []
    while (said := mine.recv())[0] != "end":
        if said[0] == "next":
            mine.send([item for item in (next(items, None),) if item is not None])
        else:
            results.append(said[1])
    thread.join()
    assert results == list(range(10, 50))
    assert ray.most == 5 * TASKS_PER_CORE
