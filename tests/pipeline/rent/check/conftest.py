"""A job to check."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.rent.check.checked_job import Case
from tests.support.jobs import write_tiny_data


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A tiny job, with its data, to check."""
    write_tiny_data(tmp_path)
    return Case(tmp_path)
