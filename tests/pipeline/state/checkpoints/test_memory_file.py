"""Another process opens the memory of a snapshot only if it is this memory, on this machine. CUDA
refuses to lock a page twice, so ranges of memory become ranges of whole pages."""

import dataclasses
import os

import pytest

from pipeline.state.checkpoints.memory_file import MemoryFile, _pages


@pytest.fixture
def fd():
    memory = os.memfd_create("test")
    os.ftruncate(memory, 100)
    yield memory
    os.close(memory)


def test_a_process_of_the_same_machine_writes_into_the_memory(fd):
    child = os.fork()
    where = MemoryFile.of(fd)
    if child == 0:
        os.close(fd)  # it has to find the memory by itself
        opened = dataclasses.replace(where, pid=os.getppid()).open()
        os._exit(9 if opened is None else os.pwrite(opened, b"moments", 10) - 7)
    assert os.waitpid(child, 0)[1] == 0
    assert os.pread(fd, 7, 10) == b"moments"


@pytest.mark.parametrize(
    "changed",
    [
        {"machine": "another machine"},
        {"machine": ""},
        {"pid": 2**22 + 1},  # there is none
        {"fd": 10**6},
        {"inode": -1},
        {"device": -1},
        {"size": 99},
    ],
)
def test_what_is_not_this_memory_is_not_opened(fd, changed):
    here = MemoryFile.of(fd)
    opened = here.open()
    os.close(opened)
    assert dataclasses.replace(here, **changed).open() is None


@pytest.mark.parametrize(
    ("ranges", "pages"),
    [
        ([], []),
        ([(4096, 1)], [(4096, 4096)]),
        ([(5000, 100), (8000, 200)], [(4096, 8192)]),  # the second begins in the first one's page
        ([(8192, 10), (0, 10)], [(0, 4096), (8192, 4096)]),
        ([(0, 4096), (4096, 4096)], [(0, 8192)]),
        ([(0, 20_000), (4096, 10)], [(0, 20_480)]),
    ],
)
def test_no_page_is_in_two_ranges(ranges, pages):
    assert _pages(ranges) == pages
