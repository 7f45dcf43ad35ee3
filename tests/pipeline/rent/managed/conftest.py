"""A launch whose task goes no further than this process."""

import pytest
import yaml

from pipeline.rent.managed import launch as launching
from tests.support.fake_provider import FakeProvider
from tests.support.jobs import tiny_dict


def checkout_in(folder, monkeypatch, store):
    """Make the present folder a checkout with the job file jobs/tiny.yaml; return it."""
    project = folder / "project"
    (project / "jobs").mkdir(parents=True)
    (project / "jobs" / "tiny.yaml").write_text(yaml.safe_dump(tiny_dict(store=str(store))))
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def submitted(monkeypatch):
    """Let every check pass, and collect the tasks. The window is closed at once."""
    tasks = []

    def submit(task, name):
        tasks.append(task)
        raise KeyboardInterrupt

    submit_by(monkeypatch, submit)
    monkeypatch.setattr(launching, "require_checks", lambda order, **more: None)
    return tasks


def submit_by(monkeypatch, submit):
    """Replace the call that submits to SkyPilot."""
    provider = FakeProvider()
    provider.submit = submit
    monkeypatch.setattr(launching, "Provider", lambda: provider)
