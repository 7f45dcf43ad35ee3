"""The page of some runs for tests: the real application on a loopback port, in this process."""

import contextlib

from pipeline.live.server import make_app
from pipeline.live.watched_run import Follower, WatchedRun
from pipeline.web.address import Address
from pipeline.web.listen import serve_in_thread, url_of


@contextlib.contextmanager
def showing(*runs):
    """Serve the page of the runs until the block ends. Yields its address."""
    address = Address(port=0)
    with contextlib.closing(address.listen()) as listener:
        followers = [Follower(WatchedRun(run.state)) for run in runs]
        with serve_in_thread(make_app(followers, address.rules()), listener):
            yield url_of(listener)
