"""Refuse requests that a web server on this machine must not answer.

A server on 127.0.0.1 is not private: any website in a browser on this machine can send requests to
it. So the `Host` header must be a name of this server (otherwise a foreign name could point here:
DNS rebinding), a foreign `Origin` is refused, and a POST must be `application/json`, which a
browser does not send to a foreign server without asking the server first. Where a key is set, all
requests but those for a page need the key. Pages of the origins that the user has named may send
requests and read the answers (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from pipeline.web.address import Rules

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Refuse = Callable[[int, str, str], web.Response]

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Headers that a page wants to send; OpenAI's client sends a dozen that no other client has.
_NAMES = re.compile(r"[A-Za-z0-9-]{1,60}(, ?[A-Za-z0-9-]{1,60}){0,39}")
_PREFLIGHT_SECONDS = 600
_NO_METHOD = 405
_HOST = re.compile(
    r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]*[a-z0-9_-])\.?)(:[0-9]{1,5})?",
    re.IGNORECASE | re.ASCII,
)
# Headers that decide who asks. A client that sends one twice may mean another than a proxy reads.
_ONCE = ("Host", "Origin", "Content-Type", "Authorization")
# The key of a request's origin, where its pages may use this server.
_ALLOWED = web.RequestKey("allowed_origin", str)
# For answers that are no pages: nothing in them is ever run or shown as a page.
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"


def guard(rules: Rules, refuse: Refuse) -> Middleware:
    """Return the middleware that applies `rules`.

    `refuse` makes the answer from a status, a code (a short name) and a message.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin in rules.origins:
            request[_ALLOWED] = origin
        refused = _refusal(request, rules)
        response: web.StreamResponse
        if refused is None:
            response = await handler(request)
        elif refused[0] == _NO_METHOD and request.method == "OPTIONS" and _ALLOWED in request:
            response = _preflight(request)
        else:
            response = refuse(*refused)
            # What is left of a refused body is not read, so the connection can't be used again.
            response.force_close()
        if not response.prepared:  # a stream has sent its headers
            add_headers(request, response)
        return response

    return guarded


def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that every answer needs to those that it has."""
    more = {"Content-Security-Policy": NO_PAGE}
    if _ALLOWED in request:
        more |= {
            "Access-Control-Allow-Origin": request[_ALLOWED],
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Vary": "Origin",
        }
    for name, value in {**HEADERS, **more}.items():
        response.headers.setdefault(name, value)


def _preflight(request: web.Request) -> web.Response:
    """Answer a browser that asks whether a page of an allowed origin may send a request."""
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
    }
    names = request.headers.get("Access-Control-Request-Headers", "")
    if _NAMES.fullmatch(names):
        headers["Access-Control-Allow-Headers"] = names
    # Chromium asks it for servers on the user's own machine.
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)


def _refusal(request: web.Request, rules: Rules) -> tuple[int, str, str] | None:
    """Return the status, code and message with which a request is refused; None: it is allowed."""
    for name in _ONCE:
        if len(request.headers.getall(name, ())) > 1:
            return 400, "repeated_header", f"the request has the header {name} more than once"
    host = _name(request)
    if host not in rules.hosts:
        return (
            421,
            "wrong_host",
            f"this server is not called {host[:100]!r}. If you reach the server by that name "
            f"(through a tunnel or proxy), start it with --allow-host {host[:100]}",
        )
    origin = request.headers.get("Origin")
    if origin is not None and not (_ALLOWED in request or _same_origin(origin, request)):
        return (
            403,
            "foreign_origin",
            f"pages of {origin[:100]} may not use this server, unless it was started with "
            "--allow-origin",
        )
    if request.method not in ("GET", "HEAD", "POST"):
        return _NO_METHOD, "method_not_allowed", f"{request.method[:20]} is not used here"
    if request.method == "POST" and request.content_type != "application/json":
        return 415, "not_json", "send the request as Content-Type: application/json"
    if rules.key is not None and request.path != "/":  # the page asks for it
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(
            given.strip().encode(errors="surrogateescape"), rules.key.encode()
        )
        if scheme.lower() != "bearer" or not same:
            return 401, "invalid_api_key", "send the key: Authorization: Bearer PION_API_KEY"
    return None


def _name(request: web.Request) -> str:
    """Return the name that a request calls the server by, in lower case and without the port.

    "" if the `Host` header is wrong, or if the target is a URL (as for a proxy) with another host.
    """
    host = request.headers.get("Host", "")
    found = _HOST.fullmatch(host)
    before, _, rest = request.raw_path.partition("://")
    other = not before.startswith("/") and rest.partition("/")[0].lower() != host.lower()
    if found is None or other:
        return ""
    try:
        address = found["address"]
        return str(ipaddress.IPv6Address(address)) if address else found["name"].lower()
    except ValueError:
        return ""


def _same_origin(origin: str, request: web.Request) -> bool:
    """Return whether a page of `origin` is a page of this server.

    A proxy may speak https to the browser and http to this server, so the scheme may differ.
    """
    scheme, _, host = origin.lower().partition("://")
    return scheme in ("http", "https") and host == request.headers["Host"].lower()
