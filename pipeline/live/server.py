"""Serve the page of some runs, alone or next to another command."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from pion.errors import BadInput
from pipeline.console.formats import show
from pipeline.live.app import make_app
from pipeline.live.follower import Follower
from pipeline.live.watched_run import WatchedRun
from pipeline.state.find_run import known_runs, read_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import DEFAULT_STORE, open_store
from pipeline.web.address import Address
from pipeline.web.listen import serve_in_thread, serve_until_stopped, url_of

# The page has a color for each.
MOST_RUNS = 8


def serve_page(runs: Sequence[str], address: Address) -> int:
    """Serve the page of `runs` until SIGTERM or Ctrl-C; return the exit code.

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
    return 0


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
