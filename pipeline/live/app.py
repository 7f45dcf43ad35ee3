"""The web application of the page: `/` is the page, and `/data` what it does not know yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

from aiohttp import web

from pipeline.console.bug_file import report_bug
from pipeline.console.formats import show
from pipeline.live.follower import Follower
from pipeline.report.settings import differing
from pipeline.web.address import Rules
from pipeline.web.guard import Handler, add_headers, guard
from pipeline.web.page import read_page

FOLDER = Path(__file__).parents[1] / "report" / "page"


def make_app(followers: Sequence[Follower], rules: Rules) -> web.Application:
    """Return the application that shows the followed runs. It answers GET requests alone."""
    page = read_page(FOLDER)

    async def show_page(request: web.Request) -> web.Response:
        return page.response()

    async def show_data(request: web.Request) -> web.Response:
        cursors = request.query.get("since", "").split(",")
        if cursors == [""] or len(cursors) != len(followers):
            cursors = [""] * len(followers)
        await asyncio.gather(*(follower.ask() for follower in followers))
        answer = {
            "now": time.time(),
            "runs": [one.run.since(cursor) for one, cursor in zip(followers, cursors)],
            "settings": differing([one.run.settings for one in followers]),
        }
        response = web.json_response(answer)
        response.enable_compression()
        return response

    app = web.Application(middlewares=[_errors, guard(rules, _refuse)])
    app.add_routes([web.get("/", show_page), web.get("/data", show_data)])
    app.cleanup_ctx.append(partial(_follow, followers))
    return app


async def _follow(followers: Sequence[Follower], app: web.Application) -> AsyncIterator[None]:
    for follower in followers:
        follower.start()
    yield
    for follower in followers:
        follower.stop()


def _refuse(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with JSON, whatever has failed."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = _refuse(error.status, "not_found", "there is only / and /data?since=CURSOR")
    except Exception as error:
        show(report_bug(error, ["status", "--web"]))
        response = _refuse(500, "bug", "a bug in Pion; the command's window has the details")
    add_headers(response)
    return response
