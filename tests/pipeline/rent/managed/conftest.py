"""A launch whose task goes no further than this process."""

import pytest

from pipeline.rent.managed import launch as launching
from tests.support.fake_provider import FakeProvider


@pytest.fixture
def submitted(monkeypatch):
    """Let every check pass, and collect the tasks. The window is closed at once."""
    monkeypatch.setattr(launching, "require_checks", lambda order, **more: None)
    return tasks_of(launching, monkeypatch)


def tasks_of(module, monkeypatch):
    """Return the list to which each task is added that `module` submits. Nothing is rented."""
    tasks = []

    def submit(task, name):
        tasks.append(task)
        raise KeyboardInterrupt

    provider = FakeProvider()
    provider.submit = submit
    monkeypatch.setattr(module, "Provider", lambda: provider)
    return tasks
