"""A whole run whose state lives in a Hub repository: few commits, and another machine resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.hub_server import USER, hub_server
from tests.support.whole_runs import final_weights, finish, kill, start, wait_for, write_job


def test_a_run_on_the_hub_is_killed_and_ends_elsewhere_with_the_same_weights(
    tmp_path: Path, whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = whole()
    with hub_server() as hub:
        hub.add_repo(f"{USER}/state")
        hub.use(monkeypatch, tmp_path / "hf")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        store = f"hf://{USER}/state"
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
