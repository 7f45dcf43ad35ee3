"""A whole run whose state lives in a Hub repository: few commits, and another machine goes on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.runs.test_resume import finish, head_of, start, wait_for, write_job
from tests.support.hub_server import USER, hub_server


def test_a_run_on_the_hub_is_killed_and_ends_elsewhere_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    finish(write_job(whole))
    with hub_server() as hub:
        hub.add_repo(f"{USER}/state")
        hub.use(monkeypatch, tmp_path / "hf")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        store = f"hf://{USER}/state"
        job = write_job(tmp_path, store=store, checkpoint__every_steps=2, log__every=1)
        process = start(job)
        wait_for(process, "sft step 3", lines=1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(tmp_path / "cache")
        output = finish(job)
        assert "pretrain: done" in output
        head = RunState(open_store(store), "tiny").read()
        assert head is not None
        shas = {entry.key: entry.model_sha256 for entry in head.checkpoints}
        final = {stage: shas[head.stages[stage].checkpoint or ""] for stage in ("pretrain", "sft")}
        expected = head_of(whole)
        wanted = {entry.key: entry.model_sha256 for entry in expected.checkpoints}
        for stage, sha in final.items():
            assert sha == wanted[expected.stages[stage].checkpoint or ""]
        commits = [r for r in hub.requests if r.startswith("POST") and "/commit/" in r]
        assert len(commits) < 30  # of the 128 an hour, with the floor under the save interval
