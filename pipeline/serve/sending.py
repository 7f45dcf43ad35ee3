"""Send the answers to a request: whole, or as they are written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from aiohttp import web

from pipeline.console.formats import show
from pipeline.serve.answers import Answers, Part, joined
from pipeline.serve.requests import Request
from pipeline.serve.responses import ResponseShape
from pipeline.serve.shapes import ChatShape, CompletionShape
from pipeline.web.guard import add_headers


@contextlib.contextmanager
def _answering(request: web.Request, answers: Answers) -> Iterator[None]:
    """Ask for the answers, and free what they use when the block ends.

    Then print a line about the request. It has no text of the request.
    """
    start = time.monotonic()
    answers.begin()
    try:
        yield
    finally:
        answers.close()
        seconds = time.monotonic() - start
        show(
            f"{time.strftime('%H:%M:%S')} {request.path} {answers.prompt_tokens} + "
            f"{answers.completion_tokens} tokens in {seconds:.2f} s"
        )


async def send(
    request: web.Request,
    asked: Request,
    answers: Answers,
    shape: ChatShape | CompletionShape | ResponseShape,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Send the answers when all have ended, or as they are written, as server-sent events."""
    with _answering(request, answers):
        if not asked.stream:
            parts: list[list[Part]] = [[] for _ in range(answers.choices)]
            async for part in answers.parts():
                parts[part.choice].append(part)
            whole = shape.whole(list(map(joined, parts)), answers)
            return web.json_response(whole, headers=headers)
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        add_headers(request, response)
        await response.prepare(request)
        async for event in shape.events(answers, asked):
            await response.write(event)
        await response.write_eof()
    return response
