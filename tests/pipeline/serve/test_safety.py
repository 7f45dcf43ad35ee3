"""No foreign page, name or program uses the server, and none takes its memory."""

from __future__ import annotations

import gc
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from pipeline.models.find import find_model
from pipeline.web.address import API_KEY, Address
from tests.support.served import Served, serving
from tests.support.waiting import PATIENCE_SECONDS, join, wait_until

KEY = "0123456789abcdef"
BODY = {"model": "base", "prompt": "The", "max_tokens": 1}


def post(served: Served, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/completions", json={**BODY, **body}, headers=headers or {})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "attacker.example"}, 421),
        ({"Host": "127.0.0.1.attacker.example"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_only_this_server_s_names_and_pages_are_answered(
    headers: dict[str, str], status: int, served: Served
) -> None:
    answer = httpx.post(
        f"{served.url}/v1/completions",
        content=json.dumps(BODY),
        headers={"Content-Type": "application/json", **headers},
    )
    assert answer.status_code == status
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_its_own_page_is_answered(served: Served) -> None:
    assert post(served, {"Origin": served.url}).status_code == 200


def test_a_foreign_page_can_t_ask_what_is_allowed(served: Served) -> None:
    """A browser asks first (OPTIONS) before a foreign page may send JSON."""
    asked = {"Origin": "http://attacker.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{served.url}/v1/completions", headers=asked)
    assert answer.status_code == 403


def test_a_key_is_needed_where_it_is_set(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    with serving({"base": find_model(f"{run_folder}/demo@pretrain")}, slots=2) as served:
        for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": KEY}):
            answer = post(served, wrong)
            assert answer.status_code == 401
            assert KEY not in answer.text
        assert httpx.get(f"{served.url}/v1/models").status_code == 401
        assert httpx.get(f"{served.url}/v1/models?key={KEY}").status_code == 401
        assert post(served, {"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert served.client(KEY).models.list().data[0].id == "base"


def test_a_tunnel_s_name_is_allowed_if_said(run_folder: Path) -> None:
    found = {"base": find_model(f"{run_folder}/demo@pretrain")}
    address = Address(port=0, allowed=("pion.example",))
    with serving(found, slots=2, address=address) as served:
        assert post(served, {"Host": "pion.example"}).status_code == 200
        assert post(served, {"Host": "other.example"}).status_code == 421


def test_more_requests_than_the_queue_are_refused(run_folder: Path) -> None:
    found = {"base": find_model(f"{run_folder}/demo@pretrain")}
    with serving(found, slots=1, queue=1) as served, ThreadPoolExecutor(12) as threads:
        many = [threads.submit(post, served, max_tokens=250, ignore_eos=True) for _ in range(12)]
        answers = [one.result(PATIENCE_SECONDS) for one in many]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert {answer.status_code for answer in answers} == {200, 429}
        assert refused[0].headers["Retry-After"] == "1"
        assert refused[0].json()["error"]["code"] == "server_busy"


def test_a_hundred_clients_that_vanish_leave_nothing(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    vanish(served, 20)  # what is loaded once
    before = settled(served)
    vanish(served, 100)
    assert settled(served) <= before
    assert "bug" not in capfd.readouterr().err


@pytest.mark.soak
def test_a_thousand_clients_that_vanish_take_no_memory(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    vanish(served, 100)
    gc.collect()
    before, resident = settled(served), psutil.Process().memory_info().rss
    vanish(served, 900)
    assert settled(served) <= before
    assert "bug" not in capfd.readouterr().err
    gc.collect()
    assert psutil.Process().memory_info().rss - resident < 32 << 20


def test_a_body_that_never_ends_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.serve.app.BODY_SECONDS", 0.2)
    where = urlsplit(served.url)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with socket.create_connection((str(where.hostname), int(where.port or 0))) as client:
        client.sendall(head.encode())
        assert client.recv(64).startswith(b"HTTP/1.1 408")


def settled(served: Served) -> int:
    """Wait until no slot is taken and no client connected; return the open descriptors."""
    process = psutil.Process()
    port = urlsplit(served.url).port

    def idle() -> bool:
        taken = [model.engine.load() for model in served.models]
        connected = [
            one
            for one in process.net_connections("tcp")
            if one.status != psutil.CONN_LISTEN and port in (one.laddr.port, *one.raddr[1:])
        ]
        return taken == [(0, 0)] * len(taken) and not connected

    wait_until(idle, "slots and connections are free")
    return process.num_fds()


def vanish(served: Served, requests: int) -> None:
    """Send requests for up to 8 tokens, and close most connections before their answer's end."""
    where = urlsplit(served.url)
    assert where.port is not None

    def ask(number: int) -> None:
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
