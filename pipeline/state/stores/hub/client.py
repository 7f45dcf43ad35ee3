"""How this process talks to the Hub: with time limits, and without progress bars."""

import functools

import httpx
from huggingface_hub import set_client_factory
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory

# Seconds without a byte, not for the whole request. A commit of many files takes a while.
TIMEOUT = httpx.Timeout(120.0, connect=10.0)


@functools.cache
def set_up_client() -> None:
    """Let requests end when nothing moves, and log only errors. Works once per process.

    Left alone, the client waits forever, and its warning about a repeated request shows the signed
    address of an upload.
    """
    set_client_factory(_client)
    disable_progress_bars()
    hub_logging.set_verbosity_error()


def _client() -> httpx.Client:
    """Return the client's own, with time limits for requests that have none."""

    def limit(request: httpx.Request) -> None:
        asked = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            name: asked.get(name) or seconds for name, seconds in TIMEOUT.as_dict().items()
        }

    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks["request"], limit]}
    return client
