"""What a worker does that Ray Train ends for a group of another size."""

import threading
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.v2._internal.execution.controller.state import ResizingState, RunningState
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from pipeline.workers import resize
from pipeline.workers.resize import SaveBeforeResize, made_room

TO_THREE = ResizingState(ResizeDecision(3, {"CPU": 1}))


@pytest.fixture(autouse=True)
def _a_new_worker():
    yield
    resize._asked.clear()
    resize._ended.clear()


class WorkersHere:
    """Stands for a group whose workers are this process, and do what they are asked at once."""

    def __init__(self, error=None):
        self.error = error

    def execute(self, work, *values):
        if self.error is not None:
            raise self.error
        return [work(*values)]

    execute_async = execute


def test_workers_save_and_end_before_a_group_of_another_size(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda results, timeout: results)
    saving = threading.Thread(target=lambda: resize._asked.wait(60) and resize.ended())
    saving.start()
    callback = SaveBeforeResize()
    callback.after_worker_group_start(WorkersHere())
    callback.after_controller_state_update(RunningState(), TO_THREE)
    assert resize.has_ended(0), "the callback came back before the worker had saved"
    saving.join()


@pytest.mark.parametrize("error", [RayActorError(), GetTimeoutError()])
def test_a_worker_that_dies_does_not_hold_back_the_next_group(error):
    callback = SaveBeforeResize()
    callback.after_worker_group_start(WorkersHere(error))
    callback.after_controller_state_update(RunningState(), TO_THREE)


class OneNeverEnds:
    """Stands for a group whose rank 0 failed. Rank 1 waits for it in vain, and has not died."""

    def __init__(self):
        self.seconds = 0.0

    def execute(self, work):
        assert work is resize.ask

    def execute_async(self, work, seconds):
        assert work is resize.has_ended
        self.seconds += seconds
        return [True, False]


def test_a_worker_that_waits_for_one_that_failed_does_not_hold_back_the_next_group(monkeypatch):
    group = OneNeverEnds()
    monkeypatch.setattr(ray, "get", lambda results, timeout: results)
    monkeypatch.setattr(resize, "time", SimpleNamespace(monotonic=lambda: group.seconds))
    resize.save_and_end(group)
    assert group.seconds <= resize.STRAGGLER_SECONDS + 2 * resize.LOOK_SECONDS


def test_nothing_is_asked_while_a_group_trains():
    callback = SaveBeforeResize()
    callback.after_controller_state_update(RunningState(), TO_THREE)  # no group has started
    callback.after_worker_group_start(WorkersHere())
    callback.after_controller_state_update(TO_THREE, RunningState())
    assert not resize.is_asked()


def test_a_stop_of_the_driver_is_not_taken_for_a_resize():
    assert not made_room(lambda: True)
    resize.ask()
    assert not made_room(lambda: True)
    assert made_room(lambda: False)


def test_a_worker_waits_for_what_another_was_asked_first():
    looks = []

    def asked_a_moment_later():
        looks.append(True)
        if len(looks) == 3:
            resize.ask()
        return False

    assert made_room(asked_a_moment_later)
