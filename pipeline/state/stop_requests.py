"""Requests to the owner of a run, kept in its store: stop, or hand the run over to a launch.

A request stays until a person clears it, so that managed restarts of the run obey it too. A
handover asks every launch but one to stop: restarts of the old launch stop, and restarts of the new
launch don't.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import NotRequired

from typing_extensions import TypedDict

from pion.errors import BadInput
from pipeline.console.formats import moment, printable
from pipeline.state.author import user_name
from pipeline.state.record_json import FORMAT, Count, Time, build, open_record, parse
from pipeline.state.run_state import RunState
from pipeline.state.stores import Missing

STOP = "stop"

Note = Callable[[str], None]


class _By(TypedDict):
    host: str
    pid: Count
    user: str


@open_record
class _Record(TypedDict):
    """A request in the store."""

    at: Time
    by: _By
    reason: str
    except_launch: NotRequired[str | None]


@dataclass(frozen=True)
class StopRequest:
    """A request by a person or program that the run save and stop. `at` is Unix time.

    `except_launch` is the launch (`PION_LAUNCH_ID`) that the run is handed over to. The request
    does not apply to that launch.
    """

    at: float
    host: str
    pid: int
    user: str
    reason: str
    except_launch: str | None = None

    def describe(self) -> str:
        """Return `pion stop by ann on host-a at 2026-11-20 07:33:12 UTC`."""
        return printable(f"{self.reason} by {self.user} on {self.host} at {moment(self.at)}")


def ask_stop(run: RunState, reason: str, *, except_launch: str | None = None) -> StopRequest:
    """Ask the present and any later owner of `run` to save and stop. Raises `StoreError`.

    The request does not apply to `except_launch`: the run is handed over to that launch.
    """
    request = StopRequest(
        run.clock.now(),
        socket.gethostname(),
        os.getpid(),
        user_name(),
        printable(reason),
        except_launch,
    )
    record = {
        "format": FORMAT,
        "kind": STOP,
        "at": request.at,
        "by": {"host": request.host, "pid": request.pid, "user": request.user},
        "reason": request.reason,
        "except_launch": except_launch,
    }
    text = json.dumps(record, indent=1) + "\n"
    run.store.write(run.key(f"requests/{uuid.uuid4().hex}.json"), text.encode())
    run.store.flush()
    return request


def pending_stop(
    run: RunState, note: Note = lambda text: None, *, launch_id: str | None = None
) -> StopRequest | None:
    """Return the newest request that a process of the launch `launch_id` should obey, or None.

    Files that can't be read as requests are reported to `note` and ignored, because they must not
    end a run. Raises `StoreError`.
    """
    newest: StopRequest | None = None
    for key in _keys(run):
        request = _read(run, key, note)
        if request is None or (launch_id is not None and request.except_launch == launch_id):
            continue
        if newest is None or request.at > newest.at:
            newest = request
    return newest


def clear_stops(run: RunState) -> int:
    """Remove every request, readable or not, and return how many there were. Raises
    `StoreError`."""
    keys = _keys(run)
    for key in keys:
        run.store.delete(key)
    if keys:
        run.store.flush()
    return len(keys)


def withdraw_handover(run: RunState, launch_id: str) -> int:
    """Remove the requests to hand the run over to that launch, and return how many there were.
    Raises `StoreError`."""
    return _remove(run, lambda request: request.except_launch == launch_id)


def clear_handovers(run: RunState) -> int:
    """Remove every request to hand the run over, and return how many there were. A person's request
    to stop stays. Raises `StoreError`."""
    return _remove(run, lambda request: request.except_launch is not None)


def is_asked_to_stop(run: RunState) -> bool:
    """Return whether a person asked the run to stop, whatever machine it is on. Raises
    `StoreError`."""
    found = (_read(run, key, lambda text: None) for key in _keys(run))
    return any(request is not None and request.except_launch is None for request in found)


def _remove(run: RunState, which: Callable[[StopRequest], bool]) -> int:
    keys = []
    for key in _keys(run):
        request = _read(run, key, lambda text: None)
        if request is not None and which(request):
            keys.append(key)
    for key in keys:
        run.store.delete(key)
    if keys:
        run.store.flush()
    return len(keys)


def _keys(run: RunState) -> list[str]:
    return [entry.key for entry in run.store.list(run.key("requests/"))]


def _read(run: RunState, key: str, note: Note) -> StopRequest | None:
    where = f"{run.store.url}/{key}"
    try:
        return _parse(run.store.read(key), where)
    except Missing:  # cleared meanwhile
        return None
    except BadInput as error:
        note(f"a request was ignored: {error}")
        return None


def _parse(data: bytes, where: str) -> StopRequest:
    raw = parse(data, where)
    if raw.get("kind") != STOP:
        raise BadInput(
            f"{where} has the kind {raw.get('kind')!r}; this pion only supports {STOP!r}."
        )
    record = build(_Record, raw, where)
    by = record["by"]
    launch = record.get("except_launch")
    return StopRequest(record["at"], by["host"], by["pid"], by["user"], record["reason"], launch)
