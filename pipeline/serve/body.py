"""Read the body of a request: its bytes, its JSON, and its fields."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from pion.errors import BadInput
from pion.untrusted import parse_json
from pipeline.serve.errors import ApiError
from pipeline.serve.fields import Body, checked

# The most bytes of a request. A token has four characters of English; JSON may double them.
LARGEST_BODY = 4 << 20
# How long a client may take to send its request, in seconds.
BODY_SECONDS = 30.0
# Reading more bytes may take seconds (two, for a million brackets), so a thread does it.
READ_AT_ONCE = 64 << 10
# One thread: each of a hundred such bodies could take half a gigabyte while it is read.
_READER = ThreadPoolExecutor(1, thread_name_prefix="read bodies")


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """Return the request's fields. Other requests are answered meanwhile.

    Raises ApiError if the fields are wrong.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            data = await request.read()
    except TimeoutError:
        raise ApiError(408, "the request did not arrive in time", code="timeout") from None
    except (web.RequestPayloadError, ContentEncodingError) as error:
        coding = request.headers.get("Content-Encoding", "none")
        raise ApiError(
            400,
            f"the body can't be read (Content-Encoding: {coding[:40]}): {error}",
            code="damaged_body",
        ) from None
    if len(data) <= READ_AT_ONCE:
        return _fields(data, kind)
    return await asyncio.get_running_loop().run_in_executor(_READER, _fields, data, kind)


def _fields(data: bytes, kind: type[Body]) -> Body:
    try:
        fields = parse_json(data, "the body")
    except BadInput as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    return checked(kind, fields)
