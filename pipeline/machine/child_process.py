"""The processes that Pion starts: their environment has no keys but those that a process uses.

Also work that is done in a child, so that what the work imports is not kept in memory here.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pion.errors import PionError
from pion.secret_names import names_secret
from pipeline.console.masking import holds_userinfo

# What begins the names of the variables that talk to S3 and to the Hub.
S3 = ("AWS_",)
HUB = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_")
# The same of a worker that trains: Ray's token, and what trackers of metrics need.
TRAINING = (*S3, *HUB, "RAY_", "WANDB_", "TRACKIO_")


def without_secrets(*uses: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment without the variables that hold secrets, by their names or because
    their values are URLs with a password. Variables that begin with one of `uses` stay.

    A process that talks to a service also keeps its proxies.
    """
    proxies = ("http_proxy", "https_proxy", "all_proxy") if uses else ()
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(uses) or name.lower() in proxies or not _is_secret(name, value)
    }


def of_store(url: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a process that writes to the store at `url`."""
    uses = S3 if url.startswith("s3://") else HUB if url.startswith("hf://") else ()
    return without_secrets(*uses, environment=environment)


def _is_secret(name: str, value: str) -> bool:
    return name == "AWS_ACCESS_KEY_ID" or names_secret(name) or holds_userinfo(value)


# ---------------------------------------------------------------- work in a child

T = TypeVar("T")

_lock = threading.Lock()
_child: ProcessPoolExecutor | None = None
_waiting = 0


def in_child(work: Callable[..., T], *values: Any) -> T:
    """Return `work(*values)`, both of which a child process can unpickle.

    All threads share one child, which ends when nobody waits for it. Raises what `work` raises, and
    PionError if the child dies.
    """
    global _child, _waiting
    with _lock:
        if _child is None:
            spawn = multiprocessing.get_context("spawn")
            _child = ProcessPoolExecutor(1, spawn, initializer=_forget_secrets)
        child = _child
        _waiting += 1
    try:
        return child.submit(work, *values).result()
    except BrokenProcessPool as error:
        with _lock:
            _child = None if _child is child else _child
        raise PionError(
            f"a child process of pion ended before it had an answer ({error}). Its memory may have "
            "run out. Nothing was changed, and it is tried again."
        ) from error
    finally:
        with _lock:
            _waiting -= 1
            if _waiting == 0 and _child is not None:
                _child.shutdown(wait=False)
                _child = None


def _forget_secrets() -> None:
    """Keep only the keys of stores in the environment of this child."""
    kept = without_secrets(*S3, *HUB)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
