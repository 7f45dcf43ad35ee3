"""Start a web server, and stop it cleanly."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import cast

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.typedefs import Handler

# How long answers that are being sent may take to end once the server stops, in seconds.
GRACE = 5.0
# So many connections are accepted before one more is closed.
AT_ONCE = 16
# The most bytes of a request's first line and of a header, and the most headers. The first two
# differ, so that an error tells what was too long.
LONGEST_LINE, LONGEST_HEADER, MOST_HEADERS = 8190, 8191, 128
# How long a client may take to read why its request was refused, in seconds.
UNREAD_ANSWER = 5.0
# How often a client that sends no more is looked for, in seconds.
GONE_SECONDS = 0.5
LOGGER = logging.getLogger(__name__)


def _is_ours(record: logging.LogRecord) -> bool:
    """Return whether a message is about this server, and not about what a client sent.

    Bytes that are no HTTP get status 400. A traceback for each would let anybody fill the log.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


LOGGER.addFilter(_is_ours)


class _Refusal(web.Response):
    """The answer to what is no request. Then what the client still sends is read and forgotten.

    Otherwise the kernel would reset the connection, and the client might never see the answer.
    """

    async def write_eof(self, data: bytes = b"") -> None:
        transport = None if self._req is None else self._req.transport
        await super().write_eof(data)
        if transport is not None and transport.can_write_eof():
            transport.write_eof()
            await asyncio.sleep(UNREAD_ANSWER)  # ends when the client closes the connection


class _Connection(web.RequestHandler):
    """A connection. What is no request gets the status that says why, and nothing more is read."""

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # as aiohttp's own runner
            logger=LOGGER,
            keepalive_timeout=30,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_HEADER,
            max_headers=MOST_HEADERS,
        )
        self._refused = self.has_sent_all = False
        # While a request is answered. `silent`: nothing of its answer was sent yet.
        self.busy = self.silent = False

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own returns a bool
        """Keep the connection of a client that sends no more, because it may wait for an answer."""
        self.has_sent_all = True
        asyncio.get_running_loop().call_later(GONE_SECONDS, self._look_if_gone)
        return True

    def _look_if_gone(self) -> None:
        """Close the connection if nothing is answered. Otherwise send what is no part of an answer:
        a client that has gone resets the connection, and the next time this is noticed."""
        if not self.busy:
            self.force_close()
            return
        if self.silent and self.transport is not None:
            self.transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        asyncio.get_running_loop().call_later(GONE_SECONDS, self._look_if_gone)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer after an error."""
        answer = super().handle_error(request, status, exc, message)
        if not isinstance(exc, HttpProcessingError):
            return answer
        self._refused = True
        if isinstance(exc, LineTooLong) or "Too many headers" in exc.message:
            status = 414 if LONGEST_LINE in exc.args else 431
        refusal = _Refusal(status=status, text=message)
        refusal.force_close()
        return refusal


async def _is_heard(request: web.Request, response: web.StreamResponse) -> None:
    """Note that something of the answer is sent now."""
    cast(_Connection, request.protocol).silent = False


class _Room:
    """Makes room for new connections: closes the oldest idle one while `most` are idle.

    Otherwise clients that send nothing use up the files that this process may open.
    """

    def __init__(self, most: int) -> None:
        self._most = most

    @web.middleware
    async def counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request, during which its connection is not idle."""
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.busy, connection.silent = True, request.version >= HttpVersion11
        try:
            response = await handler(request)
        finally:
            connection.busy = False
        if connection.has_sent_all:
            response.force_close()
        return response

    def accept(self, server: web.Server) -> web.RequestHandler:
        """Return what handles a new connection."""
        idle = [
            one
            for one in cast("Iterable[_Connection]", server.connections)
            if one.transport is not None and not one.busy and not one.writing_paused
        ]
        if len(idle) >= self._most:
            idle[0].force_close()
        return _Connection(server, asyncio.get_running_loop())


def url_of(listener: socket.socket) -> str:
    """Return the address of a bound socket as a browser on this machine needs it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def answering(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Answer requests until the block ends, then wait for what is being sent, GRACE at most.

    A request whose client has gone is cancelled.
    """
    room = _Room(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
    app.middlewares.append(room.counted)
    app.on_response_prepare.append(_is_heard)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=GRACE)
    await runner.setup()
    assert runner.server is not None
    acceptor = await asyncio.get_running_loop().create_server(
        partial(room.accept, runner.server), sock=listener, backlog=AT_ONCE
    )
    listener.listen()  # the queue itself may be longer
    try:
        yield
    finally:
        acceptor.close()
        await runner.cleanup()


async def serve_until_stopped(
    app: web.Application, listener: socket.socket, started: Callable[[], None]
) -> None:
    """Answer requests until SIGTERM or SIGINT. `started` is called once requests are answered."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with answering(app, listener):
            started()
            await stop.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def serve_in_thread(app: web.Application, listener: socket.socket) -> Iterator[None]:
    """Answer requests in another thread until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="web server")
    thread.start()
    server = AsyncExitStack()
    try:
        entering = server.enter_async_context(answering(app, listener))
        asyncio.run_coroutine_threadsafe(entering, loop).result()
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
