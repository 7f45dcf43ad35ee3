"""A client that stops reading is given up."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from aiohttp import web

from pipeline.web import address
from pipeline.web.address import Address
from pipeline.web.listen import serve_in_thread
from tests.support.waiting import wait_until


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def server(ended: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setattr(address, "UNREAD_SECONDS", 0.2)

    async def much(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 20))
        finally:
            ended.append("much")

    app = web.Application()
    app.add_routes([web.get("/much", much)])
    listener = Address(port=0).listen()
    with serve_in_thread(app, listener):
        yield listener
    listener.close()


def test_a_reader_that_stops_is_given_up(server: socket.socket, ended: list[str]) -> None:
    with socket.create_connection(server.getsockname()) as client:
        client.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1)
        wait_until(lambda: ended == ["much"], "the end of the answer")
