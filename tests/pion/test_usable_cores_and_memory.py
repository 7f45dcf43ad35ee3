"""What a process may use is what its container has, and not what the machine has."""

import os

import pytest

from pion.usable_cores_and_memory import memory_limits, usable_cores, usable_memory


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "800000 100000\n"}, 8),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu.max": ""}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_the_cores_are_those_of_the_container(files, cores, tmp_path):
    write(tmp_path, files)
    assert usable_cores(tmp_path) == cores


def test_a_process_that_is_bound_to_some_cores_uses_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6})
    assert usable_cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, []),
        ({"memory.max": "max\n"}, []),
        ({"memory.max": "1000000\n"}, [1_000_000]),
        ({"memory/memory.limit_in_bytes": "2000000\n"}, [2_000_000]),
    ],
)
def test_the_memory_is_that_of_the_container(files, limits, tmp_path):
    write(tmp_path, files)
    assert memory_limits(tmp_path) == limits
    assert usable_memory(tmp_path) > 0
    assert usable_memory(tmp_path) <= min(limits, default=1 << 60)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
