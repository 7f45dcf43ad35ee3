"""The processes that Pion starts: their environment has no keys but those that a process uses.

Also work that is done in a child, so that what the work imports is not kept in memory here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
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

_turn = threading.Lock()  # held by who asks the child
_counting = threading.Lock()
_waiting = 0
_child: tuple[BaseProcess, Connection] | None = None


def in_child(work: Callable[..., T], *values: Any) -> T:
    """Return `work(*values)`, both of which a child process can unpickle.

    All threads share one child, by turns. It ends when nobody waits for it, and the next child
    starts after that, so that there are never two. Raises what `work` raises, and PionError if the
    child dies.
    """
    global _waiting
    with _counting:
        _waiting += 1
    try:
        with _turn:
            done, answer = _ask(work, values)
    finally:
        with _counting:
            _waiting -= 1
            if _waiting == 0:
                _end_child()
    if not done:
        raise answer
    result: T = answer
    return result


def _ask(work: Callable[..., Any], values: Sequence[Any]) -> tuple[bool, Any]:
    """Return whether the child has an answer, and the answer, or else what was raised."""
    global _child
    _child = _child or _start_child()
    process, pipe = _child
    try:
        pipe.send((work, values))
        said: tuple[bool, Any] = pipe.recv()
    except (EOFError, OSError) as error:
        _end_child()
        raise PionError(
            "a child process of pion ended before it had an answer (exit code "
            f"{process.exitcode}). Its memory may have run out. Nothing was changed, and it is "
            "tried again."
        ) from error
    except BaseException:  # after Ctrl-C, the answer would be taken for that of the next question
        process.kill()
        _end_child()
        raise
    return said


def _start_child() -> tuple[BaseProcess, Connection]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_answer, args=(there,), daemon=True)
    # The child gets no Ctrl-C of its parent's, also before it ignores them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()  # so that reading fails once the child is dead
    return process, here


def _end_child() -> None:
    """Wait until the child has ended."""
    global _child
    if _child is not None:
        process, pipe = _child
        pipe.close()
        process.join()
        _child = None


def _answer(pipe: Connection) -> None:
    """Answer questions until the parent has no more, or is dead. The child calls this.

    Keep only the keys of stores in the environment. Leave Ctrl-C to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kept = without_secrets(*S3, *HUB)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            work, values = pipe.recv()
            try:
                said = True, work(*values)
            except Exception as error:  # raised again in the parent
                said = False, error
            pipe.send(said)
