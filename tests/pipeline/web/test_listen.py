"""Clients that stop reading, or send nothing, do not keep others out."""

import asyncio
import resource
import socket
import threading
from contextlib import ExitStack

import pytest
from aiohttp import web

from pipeline.web import address
from pipeline.web.address import Address
from pipeline.web.listen import serve_in_thread
from tests.support.waiting import PATIENCE_SECONDS, wait_until


@pytest.fixture
def ended():
    return []


@pytest.fixture
def begun():
    """Events: each lets an answer go on."""
    return []


@pytest.fixture
def server(ended, begun, monkeypatch):
    monkeypatch.setattr(address, "UNREAD_SECONDS", 0.2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (12, 12))

    async def much(request):
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 20))
        finally:
            ended.append("much")

    async def held(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.Event().wait()
        return response

    async def slow(request):
        going = threading.Event()
        begun.append(going)
        try:
            await asyncio.to_thread(going.wait, PATIENCE_SECONDS)
        finally:
            ended.append("slow")
        return web.Response(text="done")

    app = web.Application()
    app.add_routes([web.get("/much", much), web.get("/held", held), web.get("/slow", slow)])
    listener = Address(port=0).listen()
    with serve_in_thread(app, listener):
        yield listener
        for event in begun:
            event.set()
    listener.close()


def test_a_reader_that_stops_is_given_up(server, ended):
    with socket.create_connection(server.getsockname()) as client:
        client.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1)
        wait_until(lambda: ended == ["much"], "the end of the answer")


def test_a_client_that_has_sent_all_gets_its_answer_and_one_that_has_gone_does_not(
    server, ended, begun
):
    request = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(server.getsockname()) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: begun, "the request")
        begun[0].set()
        assert client.makefile("rb").read().endswith(b"done")
    with socket.create_connection(server.getsockname()) as client:
        client.sendall(request)
        wait_until(lambda: len(begun) == 2, "the request")
    wait_until(lambda: ended == ["slow", "slow"], "the end of the second answer")


def ask(client, path, end):
    """Send a request; return its answer, which ends with `end`, or what came before the close."""
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(end) and (more := client.recv(4096)):
        answer += more
    return answer


def test_the_oldest_idle_connection_makes_room_for_a_new_one(server):
    with ExitStack() as stack:
        clients = []
        for number in range(6):
            clients.append(stack.enter_context(socket.create_connection(server.getsockname())))
            path, end = ("/", b"Not Found") if number else ("/held", b"x\r\n")
            assert ask(clients[-1], path, end).endswith(end)
        busy, *clients = clients
        assert [client.recv(1) for client in clients[:2]] == [b"", b""]
        assert all(ask(client, "/", b"Not Found") for client in clients[2:])
        busy.setblocking(False)
        with pytest.raises(BlockingIOError):  # still answered
            busy.recv(1)


NO_REQUEST = {
    "length": (400, b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
    "chunk": (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"),
    "long header": (431, b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n"),
    "many headers": (431, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000 + b"\r\n"),
    "long line": (414, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@pytest.mark.parametrize("name", NO_REQUEST)
def test_what_is_no_http_is_refused_and_not_logged(name, server, caplog):
    """The client gets the answer also if it sends much more before it reads."""
    status, sent = NO_REQUEST[name]
    with socket.create_connection(server.getsockname()) as client:
        client.sendall(sent)
        client.sendall(bytes(4 << 20))
        answer = client.makefile("rb").read()
    assert f" {status} ".encode() in answer.partition(b"\r\n")[0]
    assert not caplog.records
