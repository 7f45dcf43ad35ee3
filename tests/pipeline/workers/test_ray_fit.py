"""What Ray Train is told of the number of workers, and which worker makes room for more."""

import json
import subprocess
import sys

import pytest

from pipeline.console.messages import Trained
from pipeline.training import loop
from pipeline.training.train_request import Group
from pipeline.workers import resize
from pipeline.workers.ray_fit import most_failures, scaling_of, train
from tests.support.jobs import tiny_job, train_request
from tests.support.waiting import PATIENCE_SECONDS


def test_ray_is_imported_after_the_settings_that_it_reads_once():
    """Else `uv run` makes an environment for each worker, which takes a quarter of a minute."""
    check = """if True:
        import sys; from pipeline.workers import ray_fit
        def started(*_):
            sys.exit(int(sys.modules["ray._private.ray_constants"].RAY_ENABLE_UV_RUN_RUNTIME_ENV))
        ray_fit.start_ray = started; ray_fit.main()"""
    task = {"workers": 1, "address": None, "session": "", "request": {"gpus": 0}}
    line, task = [sys.executable, "-c", check], json.dumps(task)
    subprocess.run(line, input=task, text=True, check=True, timeout=PATIENCE_SECONDS)


def test_a_number_of_workers_is_fixed_and_a_range_is_ray_trains_elastic_policy():
    assert scaling_of(3) == {"num_workers": 3}
    assert scaling_of([2, 16]) == {
        "num_workers": (2, 16),
        "elastic_resize_monitor_interval_s": 60.0,
    }


def test_a_run_of_weeks_may_lose_more_nodes_than_a_machine_may_lose_workers():
    assert most_failures(3) == 100
    assert most_failures([2, 16]) == 10_000


class HereLine:
    """A worker's connection to a driver that has asked for nothing, or for a stop."""

    stop_requested = False

    def __init__(self):
        self.said = []

    def send(self, message):
        self.said.append(message)


@pytest.fixture
def asked_to_make_room():
    resize.ask()
    yield
    resize._asked.clear()


@pytest.mark.usefixtures("asked_to_make_room")
@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_wait_until_the_one_that_owns_the_run_is_asked(tmp_path, monkeypatch, rank):
    found = []

    def look(context):
        found.append((context.should_stop(), context.is_resized()))
        context.watchdog.close()
        return "stopped"

    monkeypatch.setattr(loop, "train_stages", look)
    request = train_request(tiny_job(sft=None), tmp_path)
    line = HereLine()
    train(request, Group(rank, 2), line)
    assert found == [(rank == 0, rank == 0)]
    assert not [said for said in line.said if isinstance(said, Trained)]
