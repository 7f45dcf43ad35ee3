"""A whole run whose state lives in a Hub repository: few commits, and another machine resumes."""

import shutil
from contextlib import contextmanager

import pytest

from pipeline.state.head import REFERENCE
from tests.support.hub_server import USER, hub_server
from tests.support.meddling import with_slow_steps
from tests.support.preference_runs import killed_in_the_pass, prefer_job
from tests.support.whole_runs import (
    final_weights,
    finish,
    head_of,
    kill,
    start,
    wait_for,
    write_job,
)


@contextmanager
def empty_repository(folder, monkeypatch):
    """Yield a Hub and the URL of a store in it. The machine's cache is `cache` in `folder`."""
    with hub_server() as hub:
        hub.add_repo(f"{USER}/state")
        hub.use(monkeypatch, folder / "hf")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield hub, f"hf://{USER}/state"


def test_a_run_on_the_hub_is_killed_and_ends_elsewhere_with_the_same_weights(
    tmp_path, whole, monkeypatch
):
    unbroken = whole()
    with empty_repository(tmp_path, monkeypatch) as (hub, store):
        job = write_job(tmp_path, store=store, checkpoint__every_steps=2, log__every=1)
        process = start(job)
        wait_for(process, "sft step 3")
        kill(process)
        shutil.rmtree(tmp_path / "cache")
        output = finish(job)
        assert "pretrain: done" in output
        assert final_weights(store) == final_weights(unbroken)
        commits = [r for r in hub.requests if r.startswith("POST") and "/commit/" in r]
        assert len(commits) < 30  # the limit is 128 per hour; saves keep their distance


@pytest.mark.soak
def test_a_run_with_preferences_on_the_hub_is_killed_twice_and_ends_elsewhere_with_the_same_bits(
    tmp_path, monkeypatch
):
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    finish(prefer_job(unbroken))
    with empty_repository(tmp_path, monkeypatch) as (hub, store):
        job = prefer_job(tmp_path, store=store, checkpoint__every_steps=2, log__every=1)
        killed_in_the_pass(tmp_path, job, 2)  # after the chunk of the training rows
        shutil.rmtree(tmp_path / "cache")
        process = start(job, env=with_slow_steps(tmp_path).environment())
        resumed = wait_for(process, "prefer step 3/8")
        kill(process)
        assert "reference pass: continuing after row" in resumed, resumed
        shutil.rmtree(tmp_path / "cache")
        output = finish(job)
        assert "sft: done" in output
        assert "reference pass" not in output  # HEAD names its numbers
        assert final_weights(store) == final_weights(unbroken)
        keys = {head_of(where).data[REFERENCE].split("/")[1] for where in (store, unbroken)}
        assert len(keys) == 1
        commits = [r for r in hub.requests if r.startswith("POST") and "/commit/" in r]
        assert len(commits) < 60  # the limit is 128 per hour, and these were three starts
