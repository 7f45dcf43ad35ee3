"""Serve the page of some runs, alone or next to another command."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import lru_cache, partial

from aiohttp import web

from pion.errors import BadInput
from pipeline.console.bug_file import report_bug
from pipeline.console.formats import show
from pipeline.live.watched_run import Follower, View, WatchedRun, view_of
from pipeline.report.history import differing
from pipeline.report.report_file import PAGE
from pipeline.state.find_run import known_runs, read_run
from pipeline.state.record_json import finite_json
from pipeline.state.run_state import RunState
from pipeline.state.stores import DEFAULT_STORE, open_store
from pipeline.web.address import Address, Rules
from pipeline.web.guard import Handler, add_headers, guard
from pipeline.web.listen import serve_in_thread, serve_until_stopped, url_of
from pipeline.web.page import read_page

# The page has a color for each.
MOST_RUNS = 8
# What pages are told is kept for so many views.
MOST_VIEWS = 8
# The header with the seconds since the last look at each run; empty for a run not read yet.
AGES = "Look-Ages"


def serve_page(runs: Sequence[str], address: Address) -> None:
    """Serve the page of `runs` until SIGTERM or Ctrl-C.

    Raises BadInput, before anything is served, for a port in use or a run that does not exist, and
    StoreError.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise BadInput(
            f"--web needs the names of 1 to {MOST_RUNS} runs: pion status RUN --web. "
            f"{known_runs(open_store(DEFAULT_STORE))}"
        )
    if len(set(runs)) < len(runs):
        raise BadInput("a run is named twice. The page shows each run once")
    rules = address.rules()
    with contextlib.closing(address.listen()) as listener:
        states = [read_run(run)[0] for run in runs]
        app = make_app([Follower(WatchedRun(state)) for state in states], rules)
        url = url_of(listener)

        def started() -> None:
            show(f"{url}  the page. It only reads. Ctrl-C ends the page; the runs are not touched.")

        asyncio.run(serve_until_stopped(app, listener, started))


@contextlib.contextmanager
def page_of(state: RunState, address: Address) -> Iterator[str]:
    """Serve the page of one run, which may not have begun, in a thread until the block ends.

    Yields the page's address. Raises BadInput for a port in use.
    """
    rules = address.rules()
    with contextlib.closing(address.listen()) as listener:
        app = make_app([Follower(WatchedRun(state))], rules)
        with serve_in_thread(app, listener):
            yield url_of(listener)


def make_app(followers: Sequence[Follower], rules: Rules) -> web.Application:
    """Return the application that shows the followed runs. It answers GET requests alone."""
    runs = [follower.run for follower in followers]
    page, told = read_page(PAGE), _Told(runs)

    async def show_page(request: web.Request) -> web.Response:
        return page.response()

    async def show_data(request: web.Request) -> web.Response:
        try:
            view = view_of(request.query, len(runs))
        except BadInput as error:
            return _refuse(400, "bad_view", str(error))
        await asyncio.gather(*(follower.ask() for follower in followers))
        # How old the data is changes with each answer, so the tag must not cover it.
        ages = ["" if (age := run.age) is None else f"{age:.1f}" for run in runs]
        body, tag = await asyncio.to_thread(told.of, view)
        headers = {"ETag": f'"{tag}"', AGES: ",".join(ages)}
        if any(known.value == tag for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        response = web.Response(body=body, content_type="application/json", headers=headers)
        response.enable_compression()
        return response

    app = web.Application(middlewares=[_errors, guard(rules, _refuse)])
    app.add_routes([web.get("/", show_page), web.get("/data", show_data)])
    app.cleanup_ctx.append(partial(_follow, followers))
    return app


class _Told:
    """What pages are told of some runs, as JSON, and its tag. Any number of pages ask for it."""

    def __init__(self, runs: Sequence[WatchedRun]) -> None:
        self._runs, self._lock = runs, threading.Lock()
        self._made = lru_cache(MOST_VIEWS)(self._make)

    def of(self, view: View) -> tuple[bytes, str]:
        """Return the JSON and its tag, which are made again if a run may have changed."""
        with self._lock:
            # The numbers of changes are read first: a look may end meanwhile.
            return self._made(view, tuple(run.changes for run in self._runs))

    def _make(self, view: View, changes: tuple[int, ...]) -> tuple[bytes, str]:
        runs = self._runs
        told = {
            "runs": [
                run.told() | {"curves": run.curves(view, steps)}
                for run, steps in zip(runs, view.steps)
            ],
            "settings": differing([run.job for run in runs]) if len(runs) > 1 else None,
        }
        body = finite_json(told).encode()
        return body, hashlib.sha256(body).hexdigest()


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
        response = _refuse(error.status, "not_found", "there is only / and /data")
    except Exception as error:
        show(report_bug(error, ["status", "--web"]))
        response = _refuse(500, "bug", "a bug in Pion; the command's window has the details")
    add_headers(request, response)
    return response
