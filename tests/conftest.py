"""How tests share two processes, and one S3 service in each, where a test has its own bucket.

Starting Python and Ray takes one core and most of the time, so two processes are twice as fast. The
tests of one file stay together, as do all that start Ray; those come first, being the longest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server, s3_server

# Two processes whose threads spin while they wait for each other take ten times as long on the same
# cores. Read when torch is first imported, here and in what tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONGEST_FIRST = ("test_resume", "test_interruptions", "test_hops", "test_crash_everywhere")


@pytest.hookimpl(tryfirst=True)  # the groups are read by this hook of xdist
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (not _starts_ray(item), _length(item)))
    for item in items:
        group = "ray" if _starts_ray(item) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


def _starts_ray(item: pytest.Item) -> bool:
    return item.path.stem == "test_ray" or "on_shared_ray" in getattr(item, "fixturenames", ())


def _length(item: pytest.Item) -> int:
    name = item.path.stem
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server
