"""Whatever clients do, the server keeps answering, and keeps nothing of them."""

import gc
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from pion.untrusted import parse_json
from pipeline.models.find import find_model
from tests.support.served import serving
from tests.support.waiting import PATIENCE_SECONDS, join, wait_until

BODY = {"model": "base", "prompt": "The", "max_tokens": 1}


def test_more_requests_than_the_queue_are_refused(run_folder):
    found = {"base": find_model(f"{run_folder}/demo@pretrain")}
    with serving(found, slots=1, queue=1) as served, ThreadPoolExecutor(6) as threads:
        many = [
            threads.submit(ask, served, {**BODY, "max_tokens": 250, "ignore_eos": True})
            for _ in range(6)
        ]
        answers = [one.result(PATIENCE_SECONDS) for one in many]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert {answer.status_code for answer in answers} == {200, 429}
        assert refused[0].headers["Retry-After"] == "1"
        assert refused[0].json()["error"]["code"] == "server_busy"
        never = ask(served, {**BODY, "n": 3})
        assert never.status_code == 400
        assert (
            never.json()["error"]["message"] == "3 answers were asked for, and this server takes 2"
        )


# Other code of this process may open a file meanwhile. Clients would leave a hundred.
FEW = 5


def test_a_hundred_clients_that_vanish_leave_nothing(served, capfd):
    vanish(served, 20)  # what is loaded once
    before = settled(served)
    vanish(served, 100)
    assert settled(served) < before + FEW
    assert "bug" not in capfd.readouterr().out


@pytest.mark.soak
def test_a_thousand_clients_that_vanish_take_no_memory(served, capfd):
    vanish(served, 100)
    gc.collect()
    before, resident = settled(served), psutil.Process().memory_info().rss
    vanish(served, 900)
    assert settled(served) < before + FEW
    assert "bug" not in capfd.readouterr().out
    gc.collect()
    assert psutil.Process().memory_info().rss - resident < 32 << 20


def test_a_body_that_never_ends_is_given_up(served, monkeypatch):
    monkeypatch.setattr("pipeline.serve.body.BODY_SECONDS", 0.2)
    where = urlsplit(served.url)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with socket.create_connection((str(where.hostname), int(where.port or 0))) as client:
        client.sendall(head.encode())
        assert client.recv(64).startswith(b"HTTP/1.1 408")


def test_a_stream_that_nobody_reads_pauses_its_own_text_only(run_folder, monkeypatch):
    monkeypatch.setattr("pipeline.serve.answers.MOST_UNSENT", 4)
    body = {**BODY, "max_tokens": 250, "ignore_eos": True, "stream": True, "logprobs": 20}
    body["stream_options"] = {"include_usage": True}
    found = {"base": find_model(f"{run_folder}/demo@pretrain")}
    with serving(found, slots=1) as served, socket.socket() as client:
        where = urlsplit(served.url)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((str(where.hostname), int(where.port or 0)))
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        engine = served.models[0].engine
        wait_until(lambda: bool(engine._paused), "the pause")
        assert ask(served, BODY).status_code == 200  # in the only slot
        assert engine._paused
        answer = client.makefile("rb").read()
    assert b'"completion_tokens": 250' in answer
    assert b"[DONE]" in answer


def ask(served, body):
    return served.ask("POST", "/v1/completions", json=body)


def settled(served):
    """Wait until no slot is taken and no client connected; return the open descriptors."""
    process = psutil.Process()
    port = urlsplit(served.url).port

    def idle():
        taken = [model.engine.load() for model in served.models]
        connected = [
            one
            for one in process.net_connections("tcp")
            if one.status != psutil.CONN_LISTEN and port in (one.laddr.port, *one.raddr[1:])
        ]
        return taken == [(0, 0)] * len(taken) and not connected

    wait_until(idle, "slots and connections are free")
    return process.num_fds()


def vanish(served, requests):
    """Send requests for up to 8 tokens, and close most connections before their answer's end."""
    where = urlsplit(served.url)

    def ask(number):
        body = {
            "model": ("chat", "base")[number % 2],
            "prompt": "The fox " * (number % 7 + 1),
            "max_tokens": 1 + number % 8,
            "stream": number % 3 > 0,
            "n": 1 + number % 2,
        }
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        with socket.create_connection((str(where.hostname), int(where.port or 0))) as client:
            whole = number % 11 != 0
            client.sendall(head.encode() + (data if whole else data[:9]))
            if whole and number % 5 == 0:
                client.recv(64)

    workers = [
        threading.Thread(target=lambda first=first: [ask(n) for n in range(first, requests, 4)])
        for first in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        join(worker)


def test_others_are_answered_while_a_large_body_is_read(served, monkeypatch):
    begun, others_were_answered = threading.Event(), threading.Event()

    def slowly(data, where):
        begun.set()
        others_were_answered.wait(PATIENCE_SECONDS)
        return parse_json(data, where)

    monkeypatch.setattr("pipeline.serve.body.parse_json", slowly)
    body = {"model": "base", "prompt": "fox " * 50_000}
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(ask, served, body)
        try:
            assert begun.wait(PATIENCE_SECONDS)
            assert httpx.get(f"{served.url}/health", timeout=PATIENCE_SECONDS / 5).is_success
        finally:
            others_were_answered.set()
        assert "bytes, and base has a context" in asked.result().json()["error"]["message"]
