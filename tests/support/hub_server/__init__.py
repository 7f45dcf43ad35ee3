"""A Hugging Face Hub on loopback, real enough for the huggingface_hub and datasets clients.

Repositories with commits, branches, tags, private and gated access, LFS, ranged downloads, commits
with `parent_commit` as compare-and-swap, squashing, and deleting LFS objects. Faults are values:
`server.fail("/resolve/", status=503)`.

    with hub_server() as hub:
        hub.add_repo("user/data", "dataset", {"a.npy": content})
        hub.use(monkeypatch, tmp_path / "hf")           # this process's clients talk to it
        subprocess.run(…, env=os.environ | hub.environment(tmp_path / "hf"))
"""

import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from tests.support.hub_server.handler import Handler
from tests.support.hub_server.hub import (
    FINE_GRAINED_TOKEN,
    READ_TOKEN,
    USER,
    WRITE_TOKEN,
    HubServer,
)
from tests.support.waiting import join

__all__ = ["FINE_GRAINED_TOKEN", "READ_TOKEN", "USER", "WRITE_TOKEN", "HubServer", "hub_server"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def hub_server():
    """Serve a separate Hub on a free loopback port until the block ends."""
    hub = HubServer()
    server = _Server(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        join(thread)
