"""A job to check."""

import json
from functools import partial

import pytest

from pipeline.rent.check.command import show_check
from pipeline.rent.check.rental import LOOPBACK_VARIABLE
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.pipeline.rent.check.checked_job import Case, row_of
from tests.pipeline.rent.conftest import YAML
from tests.support.jobs import write_tiny_data

WORKDIR = "workdir: {folder}\n" + YAML


@pytest.fixture
def case(tmp_path):
    """A tiny job, with its data, to check."""
    write_tiny_data(tmp_path)
    return Case(tmp_path)


@pytest.fixture
def on_runpod(case, sky_home, runpod_api):
    """Return one row of the tiny job on a rental. Everything is fine except what a test changes,
    and except the store, which is a folder: a bucket takes time to connect to."""

    def find(name, resources="accelerators: A40", *, text=WORKDIR, path=None, **changes):
        options = {key: changes.pop(key, None) for key in ("force", "check")}
        text = text.replace("{folder}", str(case.folder))
        sky_yaml = read_sky_yaml(sky_home.yaml(resources, text))
        path = path or case.folder / "job.yaml"
        return row_of(name, case.job(**changes), sky_yaml, str(path), **options)

    return find


@pytest.fixture
def shown(capsys):
    """Return the exit code of `pion check --json`, and the rows that it prints, by name."""

    def check(path, on=None):
        code = show_check(str(path), [], on=on and str(on), force=False, as_json=True)
        return code, {row["name"]: row for row in json.loads(capsys.readouterr().out)}

    return check


@pytest.fixture
def with_bucket(on_runpod, s3_store, monkeypatch):
    """The same with a store in a bucket, so that everything is fine except what a test changes."""
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    return partial(on_runpod, store=s3_store)
