"""How tests share two processes, and one S3 service in each, where a test has its own bucket.

Starting Python and Ray takes one core and most of the time, so two processes are faster. The tests
of one file stay together, so those of test_ray.py share one Ray; the longest files come first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server, s3_server

# Two processes whose threads spin while they wait for each other take ten times as long on the same
# cores. Read when torch is first imported, here and in what tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONGEST_FIRST = ("test_ray", "test_resume", "test_interruptions", "test_hops")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    name = item.path.stem
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server
