"""Errors of the API, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from pipeline.console.formats import printable

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
# A message shows no more of what a client sent.
_MOST_CHARACTERS = 1000


class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: the HTTP status.
        code: a short name of the error, for programs; None: the status says all.
        param: the field of the request that is wrong, or None.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else None)
        return {
            "error": {
                "message": printable(str(self))[:_MOST_CHARACTERS],
                "type": kind or "invalid_request_error",
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> web.Response:
        """Return the answer."""
        headers = {"Retry-After": "1"} if self.status == 429 else {}
        return web.json_response(self.body(), status=self.status, headers=headers)


def refuse(status: int, code: str, message: str) -> web.Response:
    """Return the answer to a request that `pipeline.web.guard` refuses."""
    return ApiError(status, message, code=code).response()
