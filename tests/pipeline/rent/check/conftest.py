"""A job to check."""

import pytest

from tests.pipeline.rent.check.checked_job import Case
from tests.support.jobs import write_tiny_data


@pytest.fixture
def case(tmp_path):
    """A tiny job, with its data, to check."""
    write_tiny_data(tmp_path)
    return Case(tmp_path)
