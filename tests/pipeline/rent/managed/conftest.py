"""Rentals with a deadline and without one, and a launch whose task stays in this process."""

import pytest
import yaml

from pipeline.rent.managed import launch as launching
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.pipeline.rent.managed.day import MIXED, Rental, TwoMarketsDay
from tests.support.fake_provider import JOB, FakeProvider
from tests.support.jobs import tiny_dict
from tests.support.two_markets import TwoMarkets, launched_on_spot


@pytest.fixture
def rental(run, time, said):
    """A rental whose job runs on pod `a`."""
    provider = FakeProvider(JOB)
    provider.listed = [provider.pod("a", "RUNNING")]
    return Rental(provider, run, time, said)


@pytest.fixture
def day(sky_home, run, time, said):
    """A rental that waits for spot, and a note that says who rents."""
    launched = launched_on_spot(read_sky_yaml(sky_home.yaml(MIXED)), time)
    day = TwoMarketsDay(TwoMarkets(run, time, launched), run, time, said)
    day.rented("")
    return day


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
