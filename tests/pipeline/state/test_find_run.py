"""A run that has lost HEAD.json is not a new run: nothing may be written over its work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.commands.fork import fork_run
from pipeline.run.stage_plan import work_left
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, Store
from tests.pipeline.conftest import Pion
from tests.support.jobs import tiny_job
from tests.support.light_run import light_run
from tests.support.states import someone


def without_head(store: Store) -> RunState:
    run = light_run(store)
    store.delete(run.key("HEAD.json"))
    return run


def test_what_is_left_of_a_run_is_named_and_nothing_starts(store: FileStore) -> None:
    run = without_head(store)
    for attempt in (
        lambda: claim_run(run, Owner.me()),
        lambda: work_left(tiny_job(name="demo"), run),
        lambda: fork_run(light_run(store, "other"), light_run(store, "third").read(), run),
    ):
        with pytest.raises(BadInput) as refused:
            attempt()
        message = str(refused.value)
        assert re.search(r"no HEAD.json.*pretrain/20-2.*sft/5-2.*metrics", message)
        assert "Put HEAD.json back" in message
        assert f"pion rm {run.url}" in message
    assert run.read() is None


def test_a_sign_of_an_owner_is_enough(run: RunState) -> None:
    run.store.write(run.key("owner/1.json"), b"{}")
    with pytest.raises(BadInput, match="owner"):
        claim_run(run, Owner.me())


def test_what_is_there_before_a_run_begins_does_not_hinder_it(run: RunState) -> None:
    for name in ("rental.json", "deadline.json", "watcher.json", "requests/1.json", "probe-0a"):
        run.store.write(run.key(name), b"{}")
    run.store.write("demo-2/owner/1.json", b"{}")  # of another run
    assert claim_run(run, someone()).epoch == 1


def test_status_says_what_is_left_of_a_run(here: Path, pion: Pion) -> None:
    without_head(FileStore(here / "runs"))
    code, _, error = pion("status", "demo")
    assert code == 2
    assert "no HEAD.json" in error
    assert "pion rm demo" in error
