"""Retries without a stampede, and downloads that continue from the last byte that arrived."""

import os
import threading
import time
from email.utils import formatdate

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.state.stores import StoreError
from pipeline.state.stores.retry import retrying
from pipeline.state.stores.transfer import THREADS, download_parallel
from tests.support.contents import content, sha256
from tests.support.waiting import PATIENCE_SECONDS, rest_of


class Busy(Exception):
    """An answer with a Retry-After header."""

    def __init__(self, retry_after=None):
        super().__init__("busy")
        self.retry_after = retry_after


class Server:
    """Fails a number of times before it answers. Each call takes some time."""

    def __init__(self, failures, error, seconds=0.0):
        self.failures, self.error, self.seconds = failures, error, seconds
        self.calls = 0
        self.time = 1_000_000.0
        self.waits = []
        self.bounds = []

    def call(self):
        self.calls += 1
        self.time += self.seconds
        if self.calls <= self.failures:
            raise self.error
        return "answer"

    def sleep(self, seconds):
        self.time += seconds
        self.waits.append(seconds)

    def longest(self, low, high):
        self.bounds.append((low, high))
        return high

    def ask(self):
        return retrying(
            self.call,
            lambda error: isinstance(error, Busy),
            retry_after=lambda error: getattr(error, "retry_after", None),
            sleep=self.sleep,
            uniform=self.longest,
            now=lambda: self.time,
            monotonic=lambda: self.time,
        )


# Retries


def test_the_wait_is_drawn_from_a_range_that_doubles_up_to_a_bound():
    server = Server(7, Busy())
    assert server.ask() == "answer"
    assert server.bounds == [(0.0, high) for high in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)]
    assert server.waits == [high for _, high in server.bounds]


@pytest.mark.parametrize(("seconds", "tries"), [(0.0, 8), (60.0, 2)], ids=["quick", "slow"])
def test_the_eighth_failure_is_the_last_and_no_try_begins_after_90_seconds(seconds, tries):
    server = Server(99, Busy(), seconds)
    with pytest.raises(Busy):
        server.ask()
    assert server.calls == tries


def test_an_error_that_does_not_pass_is_raised_at_once():
    server = Server(1, PermissionError())
    with pytest.raises(PermissionError):
        server.ask()
    assert (server.calls, server.waits) == (1, [])


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        ("7", 7.0),
        ("45", 45.0),  # longer than any wait of our own
        ("0", 0.25),
        ("3600", 120.0),
        ("inf", 120.0),
        ("nan", 0.25),
        ("-5", 0.25),
        ("soon", 0.25),
        (formatdate(1_000_030.0, usegmt=True), 30.5),
        (formatdate(999_000.0, usegmt=True), 0.25),
    ],
)
def test_a_try_never_comes_sooner_than_the_server_asks(asked, waited):
    server = Server(1, Busy(asked))
    assert server.ask() == "answer"
    assert server.waits == [waited]


# Downloading


def retry_connections(call):
    return retrying(call, lambda error: isinstance(error, ConnectionError), sleep=lambda _: None)


def in_pieces(data, piece=100):
    for start in range(0, len(data), piece):
        yield data[start : start + piece]


@given(
    size=st.integers(0, 3000),
    part=st.integers(1, 1000),
    piece=st.integers(1, 1500),
    breaks=st.lists(st.integers(0, 3000), max_size=4),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_file_is_the_object_wherever_the_connection_breaks(tmp_path, size, part, piece, breaks):
    part = max(part, size // 50)  # not thousands of threads' work
    data, path = content(size), tmp_path / "file"
    left = set(breaks)

    def fetch(start, stop):
        for at in sorted(left):
            if start <= at < stop:
                left.remove(at)
                yield from in_pieces(data[start:at], piece)
                raise ConnectionResetError
        yield from in_pieces(data[start:stop], piece)

    assert download_parallel(fetch, size, path, retry_connections, part) == sha256(data)
    assert path.read_bytes() == data


@pytest.mark.parametrize("how", ["is reset", "ends early"])
def test_a_connection_that_breaks_costs_no_byte_that_had_arrived(tmp_path, how):
    data = content(1000)
    asked = []

    def fetch(start, stop):
        asked.append((start, stop))
        if start == 400:
            yield data[400:650]
            if how == "is reset":
                raise ConnectionResetError
        else:
            yield data[start:stop]

    path = tmp_path / "file"
    assert download_parallel(fetch, 1000, path, retry_connections, 400) == sha256(data)
    assert sorted(asked) == [(0, 400), (400, 800), (650, 800), (800, 1000)]


def test_a_connection_that_breaks_after_the_last_byte_costs_nothing(tmp_path):
    asked = []

    def fetch(start, stop):
        asked.append((start, stop))
        yield content(10)
        raise ConnectionResetError

    download_parallel(fetch, 10, tmp_path / "file", retry_connections)
    assert asked == [(0, 10)]
    assert (tmp_path / "file").read_bytes() == content(10)


def test_parts_are_hashed_in_order_in_whatever_order_they_arrive(tmp_path):
    data = content(THREADS * 100)
    arrived = [threading.Event() for _ in range(THREADS)]

    def fetch(start, stop):
        number = start // 100
        if number + 1 < THREADS:
            assert arrived[number + 1].wait(PATIENCE_SECONDS)  # the last part comes first
        yield data[start:stop]
        arrived[number].set()

    path = tmp_path / "file"
    assert download_parallel(fetch, len(data), path, retry_connections, 100) == sha256(data)
    assert path.read_bytes() == data


def test_a_slow_first_part_does_not_let_memory_grow(tmp_path):
    data = content(100 * 100)
    begun = set()
    all_busy = threading.Event()
    at_most = THREADS + 2

    def fetch(start, stop):
        begun.add(start)
        if len(begun) == at_most:
            all_busy.set()
        if start == 0:
            assert all_busy.wait(PATIENCE_SECONDS)
            time.sleep(0.2)  # a chance for more to begin
            assert len(begun) == at_most
        yield data[start:stop]

    download_parallel(fetch, len(data), tmp_path / "file", retry_connections, 100)
    assert len(begun) == 100


def test_a_download_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fetch(start, stop):
        if start == 300:
            raise ConnectionResetError("for good")
        yield content(1000)[start:stop]

    with pytest.raises(ConnectionResetError, match="for good"):
        download_parallel(fetch, 1000, path, retry_connections, 100)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert not [t.name for t in threading.enumerate() if t.name.startswith("download")]


def test_a_server_that_ignores_the_range_is_not_believed(tmp_path):
    with pytest.raises(ConnectionError, match="more bytes arrived than were asked for"):
        download_parallel(
            lambda start, stop: in_pieces(content(1000)),
            1000,
            tmp_path / "x",
            retry_connections,
            99,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_fit_is_refused_before_anything_is_fetched(start, tmp_path):
    code = """
import pathlib, resource, sys
from pipeline.state.stores import StoreError
from pipeline.state.stores.transfer import download_parallel
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def fetch(start, stop):
    print("fetched")
    yield bytes(stop - start)
try:
    download_parallel(fetch, 200_000, pathlib.Path(sys.argv[1]), lambda call: call())
except StoreError as error:
    print(error)
"""
    output = rest_of(start(code, tmp_path / "file"))
    assert output.startswith(f"Cannot write {tmp_path}/file: the file would be larger")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StoreError, match="part of the path is a file"):
        download_parallel(
            lambda start, stop: [b""], 0, tmp_path / "notes.txt" / "file", retry_connections
        )


def test_a_downloaded_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "new").touch()
    download_parallel(lambda start, stop: [b"x"], 1, tmp_path / "file", retry_connections)
    assert os.stat(tmp_path / "file").st_mode == os.stat(tmp_path / "new").st_mode
