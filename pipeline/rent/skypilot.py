"""SkyPilot itself: import it, silence it, and ask for its clouds."""

from __future__ import annotations

import contextlib
import difflib
import getpass
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from pion.errors import BadInput
from pipeline.machine.own_files import how_to_install


def sky_module() -> ModuleType:
    """Import SkyPilot.

    Raises BadInput if it is not installed, as on rented machines, or if this user has no name.
    """
    from pion.garbage_collection import importing

    try:
        getpass.getuser()  # SkyPilot asks for it, too
    except (KeyError, OSError):  # in a container, a user may be a number
        raise BadInput(
            f"SkyPilot needs the name of its user, and this machine has none for user "
            f"{os.getuid()}. Set USER=NAME and run the same command again."
        ) from None
    try:
        with importing():
            import sky
    except ImportError as error:
        raise BadInput(f"SkyPilot can't be loaded ({error}). {_INSTALL}") from None
    # A folder of YAML files called sky imports too, as an empty namespace package.
    if not hasattr(sky, "Task"):
        raise BadInput(f"SkyPilot is not installed here. {_INSTALL}")
    return sky


_INSTALL = f"Install it on the machine you rent from: {how_to_install('rent')}"


# Silencing affects the whole process. The first thread begins it, and the last one ends it.
_changing = threading.Lock()
_silence = contextlib.ExitStack()
_silent_threads = 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep SkyPilot's progress and errors off the terminal. Exceptions are still raised.

    Threads don't wait for each other: one may submit a job for a minute while others look.
    """
    global _silent_threads
    sky_module()
    with _changing:
        if _silent_threads == 0:
            _silence.enter_context(_silent())
        _silent_threads += 1
    try:
        yield
    finally:
        with _changing:
            _silent_threads -= 1
            if _silent_threads == 0:
                _silence.close()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    from sky import sky_logging

    logger = logging.getLogger("sky")
    with sky_logging.silent():
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def known_clouds() -> list[str]:
    """Return the clouds that SkyPilot can rent from, in its spelling: AWS, RunPod, …"""
    sky_module()
    from sky.utils.registry import CLOUD_REGISTRY

    return sorted(str(cloud) for cloud in CLOUD_REGISTRY.values())


def cloud_named(name: str) -> Any:
    """Return SkyPilot's object for a cloud. The case of `name` does not matter."""
    sky_module()
    from sky.utils.registry import CLOUD_REGISTRY

    return CLOUD_REGISTRY.from_str(name)


def enabled_clouds() -> list[Any]:
    """Return the clouds that the last `sky check` found credentials for; empty if it never ran."""
    sky_module()
    from sky.clouds import CloudCapability
    from sky.global_user_state import get_cached_enabled_clouds
    from sky.skypilot_config import get_active_workspace

    with quiet():
        return get_cached_enabled_clouds(CloudCapability.COMPUTE, get_active_workspace())


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a question with up to three known names that are most like `name`, the closest first;
    `otherwise` if none is. Case is ignored."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    words = " or ".join(by_lower[lower] for lower in close)
    return f"did you mean {words}?" if close else otherwise
