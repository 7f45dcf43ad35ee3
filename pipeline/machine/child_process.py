"""The processes that Pion starts: their environment has no keys but those that a process uses.

Also work that is done in a child, so that what the work imports is not kept in memory here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
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
        if name.startswith(uses)
        or name.lower() in proxies
        or not (name == "AWS_ACCESS_KEY_ID" or names_secret(name) or holds_userinfo(value))
    }


def of_store(url: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a process that writes to the store at `url`."""
    uses = S3 if url.startswith("s3://") else HUB if url.startswith("hf://") else ()
    return without_secrets(*uses, environment=environment)


# ---------------------------------------------------------------- work in a child

T = TypeVar("T")
# In the environment of a `pion run` that another command continues: then nobody else needs to.
PART_OF_SEARCH = "PION_PART_OF_SEARCH"
# What a terminal sends to all processes of a command: Ctrl-C, and that it is closed.
OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)


def in_child(work: Callable[..., T], *values: Any) -> T:
    """Return `work(*values)`, both of which a child process can unpickle. The child has ended then.

    Raises what `work` raises, and PionError if the child dies.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_answer, args=(there, work, values), daemon=True)
    # The child gets no Ctrl-C of its parent's, also before it ignores them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_TERMINALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()  # so that reading fails once the child is dead
    try:
        done, answer = here.recv()
    except (EOFError, OSError) as error:
        process.join()
        raise PionError(
            "a child process of pion ended before it had an answer (exit code "
            f"{process.exitcode}). Its memory may have run out. Nothing was changed, and it is "
            "tried again."
        ) from error
    finally:  # also after Ctrl-C
        process.kill()
        process.join()
        here.close()
    if not done:
        raise answer
    result: T = answer
    return result


def _answer(pipe: Connection, work: Callable[..., Any], values: tuple[Any, ...]) -> None:
    """Send what `work` returns or raises, unless the parent is dead. The child calls this.

    Keep only the keys of stores in the environment. Leave the terminal's signals to the parent.
    """
    for number in OF_TERMINALS:
        signal.signal(number, signal.SIG_IGN)
    kept = without_secrets(*S3, *HUB)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    try:
        said = True, work(*values)
    except Exception as error:  # raised again in the parent
        said = False, error
    with contextlib.suppress(BrokenPipeError):
        pipe.send(said)
