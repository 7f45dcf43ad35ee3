"""Fixtures that several files of these tests use."""

import dataclasses
import os
import uuid
from collections.abc import Callable

import pytest

from pipeline.state.owner import Owner


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies takes no disk cache along; only a power cut does."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # A read past the cache waits until the disk has what was written.
    monkeypatch.setattr(os, "O_DIRECT", 0)


@pytest.fixture
def new_process() -> Callable[[], Owner]:
    """Owners that are processes of one launch: each may take over from the one before at once."""

    def owner() -> Owner:
        me, session = Owner.me(), uuid.uuid4().hex
        return dataclasses.replace(me, session=session, boot_id="elsewhere", launch_id="launch")

    return owner
