"""Start a web server, and stop it cleanly."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

# How long answers that are being sent may take to end once the server stops, in seconds.
GRACE = 5.0


def url_of(listener: socket.socket) -> str:
    """Return the address of a bound socket as a browser on this machine needs it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_until_stopped(
    app: web.Application,
    listener: socket.socket,
    started: Callable[[], None],
    stopping: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT, then wait for what is being sent, GRACE at most.

    `started` is called once requests are answered, `stopping` when they are no longer accepted.
    A request whose client has gone is cancelled.
    """
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=GRACE,
        keepalive_timeout=30,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await runner.setup()
    try:
        site = web.SockSite(runner, listener)
        await site.start()
        started()
        await stop.wait()
        await site.stop()
        if stopping is not None:
            await stopping()
    finally:
        await runner.cleanup()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
