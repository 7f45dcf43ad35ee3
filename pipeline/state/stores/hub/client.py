"""Set up the Hub's client: with time limits, and without progress bars."""

import functools

import httpx
from huggingface_hub import set_client_factory
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory

# Seconds without a byte, not seconds for the whole request: a commit of many files takes a while.
TIMEOUT = httpx.Timeout(120.0, connect=10.0)


@functools.cache
def set_up_client() -> None:
    """Let requests time out when no byte arrives, and log only errors. Works once per process.

    By default the client waits forever, and its warning about a retried request shows the signed
    address of an upload.
    """
    set_client_factory(_client)
    disable_progress_bars()
    hub_logging.set_verbosity_error()


def _client() -> httpx.Client:
    """Return the default client, with time limits for requests that have none."""

    def limit(request: httpx.Request) -> None:
        asked = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            name: asked.get(name) or seconds for name, seconds in TIMEOUT.as_dict().items()
        }

    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks["request"], limit]}
    return client
