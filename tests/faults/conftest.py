"""Fixtures that several of these test files share."""

import dataclasses
import os
import uuid

import pytest

from pipeline.state.owner import Owner


@pytest.fixture(autouse=True)
def one_read_at_a_time(monkeypatch):
    """Let the same operations come in the same order each time."""
    monkeypatch.setattr("pipeline.state.stores.base.READERS", 1)


@pytest.fixture
def no_fsync(monkeypatch):
    """Skip fsync: a process that dies does not lose the disk cache; only a power cut does."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # A direct read waits until the disk has the written data.
    monkeypatch.setattr(os, "O_DIRECT", 0)


@pytest.fixture
def new_process():
    """Return owners of one launch: each may take over from the previous owner at once."""

    def owner():
        me, session = Owner.me(), uuid.uuid4().hex
        return dataclasses.replace(me, session=session, boot_id="elsewhere", launch_id="launch")

    return owner
