"""A launch whose task goes no further than this process."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from pipeline.rent.managed import launch as launching
from tests.support.fake_provider import FakeProvider


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let every check pass, and collect the tasks. The window is closed at once."""
    monkeypatch.setattr(launching, "require_checks", lambda order, **more: None)
    return tasks_of(launching, monkeypatch)


def tasks_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list to which each task is added that `module` submits. Nothing is rented."""
    tasks: list[Any] = []

    def submit(task: Any, name: str) -> int:
        tasks.append(task)
        raise KeyboardInterrupt

    provider = FakeProvider()
    provider.submit = submit
    monkeypatch.setattr(module, "Provider", lambda: provider)
    return tasks
