"""The connection between driver and workers, over real sockets and real processes."""

import contextlib
import json
import queue
import socket
import subprocess
import sys
import threading
from dataclasses import asdict

import pytest

from pipeline.console.messages import Hello, Note, Trained, to_json
from pipeline.workers import lifeline
from pipeline.workers.lifeline import LOST_DRIVER_EXIT, Lifeline, LifelineServer
from tests.support.waiting import PATIENCE_SECONDS, wait_until

WORKER = """
import json, sys, time
from pipeline.console.messages import Note
from pipeline.workers import lifeline
from pipeline.workers.lifeline import Lifeline, LifelineAddress
line = Lifeline(LifelineAddress(**json.loads(sys.argv[1])), rank=0)
line.send(Note("ready"))
while not line.stop_requested:
    time.sleep(0.01)
line.send(Note("stopped"))
line.close()
"""


@pytest.fixture
def server():
    messages = queue.Queue()
    server = LifelineServer("127.0.0.1", lambda rank, message: messages.put((rank, message)))
    server.messages = messages
    yield server
    server.close()


def start_worker(server):
    address = json.dumps(asdict(server.address))
    return subprocess.Popen([sys.executable, "-c", WORKER, address])


def test_a_worker_reports_and_stops_when_asked(server):
    worker = start_worker(server)
    assert server.messages.get(timeout=PATIENCE_SECONDS) == (0, Note("ready"))
    server.ask_to_stop()
    assert server.messages.get(timeout=PATIENCE_SECONDS) == (0, Note("stopped"))
    assert worker.wait(PATIENCE_SECONDS) == 0


def test_a_worker_that_comes_after_the_request_hears_it_too(server):
    server.ask_to_stop()
    worker = start_worker(server)
    assert worker.wait(PATIENCE_SECONDS) == 0


def test_a_worker_whose_driver_is_gone_exits_at_once(server):
    worker = start_worker(server)
    server.messages.get(timeout=PATIENCE_SECONDS)
    server.close()
    assert worker.wait(PATIENCE_SECONDS) == LOST_DRIVER_EXIT


def test_a_stranger_without_the_token_is_not_heard(server):
    with socket.create_connection((server.address.host, server.address.port)) as stranger:
        words = f"{to_json(Hello('wrong', 0))}\n{to_json(Trained('done'))}\n"
        stranger.sendall(words.encode())
        assert stranger.recv(1) == b""  # the server hung up
    assert server.connected == 0
    assert server.messages.empty()


@pytest.mark.parametrize(
    "words",
    [
        b"\n",
        b"[]\n",
        b"null\n",
        b"not JSON\n",
        b"\xff\xfe\n",
        b"[" * 1000 + b"\n",
        b"x" * 1_000_000,
        b'{"type": "Hello"}\n',
        b'{"type": "Hello", "token": 5, "rank": 0}\n',
        b'{"type": "Hello", "token": ["x"], "rank": 0}\n',
        b'{"type": "Hello", "token": "\xc3\xbc", "rank": 0}\n',
        b'{"type": "Hello", "token": "\\ud800", "rank": 0}\n',
        b'{"type": "Hello", "token": "TOKEN", "rank": "0"}\n',
        b'{"type": "Hello", "token": "TOKEN", "rank": [0]}\n',
        b'{"type": "SaveAndStop"}\n',
    ],
)
def test_a_stranger_who_sends_junk_is_hung_up_on(server, words, monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    host, port = server.address.host, server.address.port
    with socket.create_connection((host, port), timeout=PATIENCE_SECONDS) as stranger:
        # The server hangs up before it has read a million bytes.
        with contextlib.suppress(ConnectionError):
            stranger.sendall(words.replace(b"TOKEN", server.address.token.encode()))
        with contextlib.suppress(ConnectionError):
            assert stranger.recv(1) == b""
    assert server.connected == 0
    assert server.messages.empty()
    line = Lifeline(server.address, rank=0)
    line.send(Note("ready"))
    assert server.messages.get(timeout=PATIENCE_SECONDS) == (0, Note("ready"))
    assert raised == [], "a traceback was printed"
    line.close()


def test_a_stranger_who_says_nothing_is_hung_up_on(monkeypatch):
    monkeypatch.setattr(lifeline, "HELLO_SECONDS", 0.05)
    server = LifelineServer("127.0.0.1", lambda rank, message: None)
    where = (server.address.host, server.address.port)
    with socket.create_connection(where, timeout=PATIENCE_SECONDS) as stranger:
        assert stranger.recv(1) == b""
    server.close()


def test_strangers_who_wait_do_not_keep_a_worker_out(server, monkeypatch):
    monkeypatch.setattr(lifeline, "STRANGERS", 3)
    where = (server.address.host, server.address.port)
    before = threading.active_count()
    strangers = [socket.create_connection(where, timeout=PATIENCE_SECONDS) for _ in range(20)]
    for stranger in strangers[:17]:
        assert stranger.recv(1) == b""
    line = Lifeline(server.address, rank=0)
    line.send(Note("ready"))
    assert server.messages.get(timeout=PATIENCE_SECONDS) == (0, Note("ready"))
    # Three threads for strangers, and two for the worker: one at each end.
    wait_until(lambda: threading.active_count() <= before + 5, "the threads of the others to end")
    line.close()
    for stranger in strangers:
        stranger.close()


def test_a_server_that_was_closed_listens_no_longer(server):
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(
            (server.address.host, server.address.port), timeout=PATIENCE_SECONDS
        )


def test_the_server_counts_who_is_on_the_line(server):
    line = Lifeline(server.address, rank=3)
    line.send(Note("ready"))
    assert server.messages.get(timeout=PATIENCE_SECONDS)[0] == 3
    assert server.connected == 1
    line.close()
    wait_until(lambda: server.connected == 0, "the server to notice that the line is closed")
