"""Send the answers to a request: whole, or as they are written."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping

from aiohttp import web

from pipeline.console.formats import show
from pipeline.serve.answers import Answers, Part, joined
from pipeline.serve.errors import ApiError
from pipeline.serve.requests import ChatRequest, CompletionRequest
from pipeline.serve.shapes import ChatShape, CompletionShape, Json, usage
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


async def wait_for_all(request: web.Request, answers: Answers) -> list[Part]:
    """Return all answers when all have ended."""
    parts: list[list[Part]] = [[] for _ in range(answers.choices)]
    with _answering(request, answers):
        async for part in answers.parts():
            parts[part.choice].append(part)
    return list(map(joined, parts))


async def send_whole(
    request: web.Request,
    answers: Answers,
    shape: ChatShape | CompletionShape,
    headers: Mapping[str, str],
) -> web.Response:
    """Answer when all answers have ended."""
    parts = await wait_for_all(request, answers)
    body = shape.whole(parts, usage(answers)) | {"timings": answers.timings}
    return web.json_response(body, headers=headers)


async def send_stream(
    request: web.Request,
    answers: Answers,
    frames: AsyncIterator[bytes],
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Send the answers as they are written, as server-sent events."""
    response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
    add_headers(request, response)
    with _answering(request, answers):
        await response.prepare(request)
        async for frame in frames:
            await response.write(frame)
        await response.write_eof()
    return response


async def frames(
    answers: Answers,
    shape: ChatShape | CompletionShape,
    asked: ChatRequest | CompletionRequest,
) -> AsyncIterator[bytes]:
    """Yield the server-sent events of chats and completions."""
    async for chunk in _chunks(answers, shape, asked):
        yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


async def _chunks(
    answers: Answers,
    shape: ChatShape | CompletionShape,
    asked: ChatRequest | CompletionRequest,
) -> AsyncIterator[Json]:
    for chunk in shape.first_chunks(answers.choices):
        yield chunk
    try:
        async for part in answers.parts():
            timings = {"timings": answers.timings} if asked.timings_per_token else {}
            yield shape.chunk(part) | timings
    except ApiError as error:  # the status has been sent
        yield error.body()
        return
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield shape.last_chunk(usage(answers)) | {"timings": answers.timings}
