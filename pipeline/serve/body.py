"""Read the body of a request: its bytes, its JSON and its fields; say which field is wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pion.errors import BadInput
from pion.generation.bounds import check
from pion.later_fields import closest, shown
from pion.untrusted import parse_json
from pipeline.serve.errors import ApiError

# The most bytes of a request. A token has four characters of English; JSON may double them.
LARGEST_BODY = 4 << 20
# How long a client may take to send its request, in seconds, and how many requests may be on their
# way. Together, they take at most 128 MB.
BODY_SECONDS = 30.0
MOST_UNFINISHED = 32
# Reading more bytes may take seconds (two, for a million brackets), so a thread does it.
READ_AT_ONCE = 64 << 10
# One thread: each of a hundred such bodies could take half a gigabyte while it is read.
_READER = ThreadPoolExecutor(1, thread_name_prefix="read bodies")
Body = TypeVar("Body", bound=BaseModel)
# A name in a message may come from the client.
_LONGEST_NAME = 80


class Arrivals:
    """The bodies that have not arrived yet. A client that never ends its bodies takes no room of
    requests that are answered."""

    def __init__(self) -> None:
        self._unfinished: dict[asyncio.Task[bytes], str | None] = {}

    async def wait_for(self, request: web.Request) -> None:
        """Wait until the body of a request is there.

        If MOST_UNFINISHED are not, the oldest of the client that has the most gives up. Raises
        ApiError for this body, for one that takes too long, and for one that is damaged.
        """
        reading = asyncio.ensure_future(request.read())
        self._unfinished[reading] = request.remote
        try:
            if len(self._unfinished) > MOST_UNFINISHED:
                (crowd, _), *_ = Counter(self._unfinished.values()).most_common(1)
                next(task for task, who in self._unfinished.items() if who == crowd).cancel()
            await asyncio.wait({reading}, timeout=BODY_SECONDS)
            if reading.cancelled() or not reading.done():
                raise ApiError(408, "the request did not arrive in time", code="timeout")
            reading.result()
        except (web.RequestPayloadError, ContentEncodingError) as error:
            coding = request.headers.get("Content-Encoding", "none")
            raise ApiError(
                400,
                f"the body can't be read (Content-Encoding: {coding[:40]}): {error}",
                code="damaged_body",
            ) from None
        finally:
            del self._unfinished[reading]
            reading.cancel()


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """Return the fields of a request that has arrived. Other requests are answered meanwhile.

    Raises ApiError if the fields are wrong.
    """
    data = await request.read()
    if len(data) <= READ_AT_ONCE:
        return _fields(data, kind)
    return await asyncio.get_running_loop().run_in_executor(_READER, _fields, data, kind)


def _fields(data: bytes, kind: type[Body]) -> Body:
    try:
        fields = parse_json(data, "the body")
    except BadInput as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    return checked(kind, fields)


class Fields(BaseModel):
    """An object of a request. Fields that this server does not have are refused by name.

    The first mistake ends the check: a body of a million mistakes would stop the server for a
    minute.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    # Fields that never change an answer.
    without_effect: ClassVar[frozenset[str]] = frozenset()
    # Of these fields, only the values that ask for nothing are accepted, and null of any field.
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            raise ValueError(f"a JSON object is needed here, not {shown(fields)}")
        kept = {}
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for name, value in fields.items():
            if name in known:
                kept[name] = value
            elif value is None:
                continue
            elif name in cls.asks_nothing:
                if value not in cls.asks_nothing[name]:
                    raise refused(name, f"this server has no {name}; leave the field out")
            elif name not in cls.without_effect:
                hint = closest(name, known)
                raise refused(name, f"this server has no field {shown(name)}{hint}")
        return kept


def refused(name: str, words: str) -> PydanticCustomError:
    """Return the error for a field of an object, to be raised in a validator of this object."""
    return PydanticCustomError("refused", "{words}", {"words": words, "name": name})


def within(name: str) -> AfterValidator:
    """Return the check that a number is within its bounds."""

    def checked(value: float) -> float:
        try:
            check(name, value)
        except BadInput as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(checked)


def checked(kind: type[Body], fields: Any) -> Body:
    """Return the body of a request. Raises ApiError that names the first wrong field."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _first(error) from None


def _first(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    kind, words, context = first["type"], first["msg"], first.get("ctx", {})
    path = [str(part)[:_LONGEST_NAME] for part in first["loc"]]
    place = ".".join(path)
    if kind == "refused":
        words = f"{place}: {words}" if place else words
        path.append(context["name"][:_LONGEST_NAME])
    elif kind == "value_error":  # ours: of a field, it begins with the field's name
        words = str(context["error"])
        words = f"{place}: {words}" if len(path) > 1 else words
    elif kind == "missing":
        words = f"{place} is missing"
    elif words.startswith("Input should "):
        words = f"{place} {words.removeprefix('Input ')}, not {shown(first['input'])}"
    else:
        words = f"{place}: {words}"
    return ApiError(400, words, param=".".join(path) or None)
