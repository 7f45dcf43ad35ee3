"""A launch whose task goes no further than this process."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.rent.managed import launch as launching
from tests.support.fake_provider import FakeProvider


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let every check pass, and collect the tasks. The window is closed at once."""
    tasks: list[Any] = []

    def submit(task: Any, name: str) -> int:
        tasks.append(task)
        raise KeyboardInterrupt

    provider = FakeProvider()
    provider.submit = submit
    monkeypatch.setattr(launching, "Provider", lambda: provider)
    monkeypatch.setattr(launching, "require_checks", lambda order, **more: None)
    return tasks
