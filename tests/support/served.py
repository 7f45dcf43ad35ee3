"""`pion serve` for tests: the real application on a loopback port, in this process."""

from __future__ import annotations

import asyncio
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from pipeline.models.find import FoundModel
from pipeline.serve.options import Options
from pipeline.serve.served_model import ServedModel
from pipeline.serve.server import application, loaded
from pipeline.web.address import Address
from pipeline.web.listen import answering, url_of
from tests.support.waiting import PATIENCE_SECONDS, join

if TYPE_CHECKING:  # importing it takes a second
    from openai import OpenAI


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        url: its address.
        models: what it serves. Their state belongs to other threads: only read it.
    """

    url: str
    models: Sequence[ServedModel]

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Return the answer to a request; `given` are its content and headers as httpx has them."""
        return httpx.request(method, f"{self.url}{path}", timeout=PATIENCE_SECONDS, **given)

    def client(self, key: str = "none") -> OpenAI:
        """Return OpenAI's client. It never asks again by itself, and keeps no connection open.

        Other tests wait until nobody is connected.
        """
        from openai import OpenAI

        return OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key,
            max_retries=0,
            default_headers={"Connection": "close"},
        )


@contextmanager
def serving(found: dict[str, FoundModel], **fields: Any) -> Iterator[Served]:
    """Serve the models in fp32 until the block ends; `fields` are options of `pion serve`."""
    loading = Namespace(dtype=fields.pop("dtype", "float32"), drafts=fields.pop("drafts", "off"))
    options = Options(**{"address": Address(port=0), "loading": loading, "models": (), **fields})
    started: Future[Served] = Future()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        listener = options.address.listen()
        try:
            with loaded(options, found) as models:
                app = application(models, options.address.rules(), options)
                async with answering(app, listener):
                    started.set_result(Served(url_of(listener), models))
                    await stop.wait()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise
        finally:
            listener.close()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        yield started.result(PATIENCE_SECONDS)
    finally:
        loop.call_soon_threadsafe(stop.set)
        join(thread)
        loop.close()
