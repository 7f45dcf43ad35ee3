"""Requests to the owner of a run, kept in its store: stop, or hand the run over to a launch.

A request stays until a person clears it, so that managed restarts of the run obey it too. A
handover asks every launch but one to stop: restarts of the old launch stop, and restarts of the new
launch don't.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pion.errors import BadInput
from pipeline.console.formats import moment, printable
from pipeline.state.owner import Author
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import Time, open_record
from pipeline.state.run_state import RunState

REQUESTS = "requests/"

Note = Callable[[str], None]


@open_record
@dataclass(frozen=True)
class StopRequest:
    """A request by a person or program that the run save and stop. `at` is Unix time.

    `except_launch` is the launch (`PION_LAUNCH_ID`) that the run is handed over to. The request
    does not apply to that launch.
    """

    at: Time
    by: Author
    reason: str
    except_launch: str | None = None
    kind: Literal["stop"] = field(kw_only=True)

    def describe(self) -> str:
        """Return `pion stop by ann on host-a at 2026-11-20 07:33:12 UTC`."""
        return describe_stop(self.status())

    def status(self) -> dict[str, Any]:
        """Return what `pion status --json` says of the request."""
        return {
            "at": self.at,
            **dataclasses.asdict(self.by),
            "reason": self.reason,
            "except_launch": self.except_launch,
        }


def describe_stop(stop: Mapping[str, Any]) -> str:
    """Return in words what `StopRequest.status` returned."""
    return printable(
        f"{stop['reason']} by {stop['user']} on {stop['host']} at {moment(stop['at'])}"
    )


def ask_stop(run: RunState, reason: str, *, except_launch: str | None = None) -> StopRequest:
    """Ask the present and any later owner of `run` to save and stop. Raises `StoreError`.

    The request does not apply to `except_launch`: the run is handed over to that launch.
    """
    request = StopRequest(
        run.clock.now(), Author.me(), printable(reason), except_launch, kind="stop"
    )
    _file(run, run.key(f"{REQUESTS}{uuid.uuid4().hex}.json")).write(request)
    return request


def pending_stop(
    run: RunState, note: Note = lambda text: None, *, launch_id: str | None = None
) -> StopRequest | None:
    """Return the newest request that a process of the launch `launch_id` should obey, or None.

    Files that can't be read as requests are reported to `note` and ignored, because they must not
    end a run. Raises `StoreError`.
    """
    requests = _requests(run, note).values()
    obeyed = (r for r in requests if launch_id is None or r.except_launch != launch_id)
    return max(obeyed, key=lambda request: request.at, default=None)


def clear_stops(run: RunState) -> int:
    """Remove every request, readable or not, and return how many there were. Raises
    `StoreError`."""
    return _delete(run, [entry.key for entry in run.store.list(run.key(REQUESTS))])


def clear_handovers(run: RunState, launch_id: str | None = None) -> int:
    """Remove the requests to hand the run over, to that launch or to any; return how many there
    were. A person's request to stop stays. Raises `StoreError`."""
    handovers = [(k, r) for k, r in _requests(run).items() if r.except_launch is not None]
    return _delete(run, [k for k, r in handovers if launch_id in (None, r.except_launch)])


def is_asked_to_stop(run: RunState) -> bool:
    """Return whether a person asked the run to stop, whatever machine it is on. Raises
    `StoreError`."""
    return any(request.except_launch is None for request in _requests(run).values())


def _delete(run: RunState, keys: list[str]) -> int:
    for key in keys:
        run.store.delete(key)
    if keys:
        run.store.flush()
    return len(keys)


def _requests(run: RunState, note: Note = lambda text: None) -> dict[str, StopRequest]:
    """Return the requests that can be read, by key."""
    requests = {}
    for entry in run.store.list(run.key(REQUESTS)):
        try:
            request, _ = _file(run, entry.key).read()
        except BadInput as error:
            note(f"a request was ignored: {error}")
        else:
            if request is not None:  # else it was cleared meanwhile
                requests[entry.key] = request
    return requests


def _file(run: RunState, key: str) -> RecordFile[StopRequest]:
    return RecordFile(run.store, key, strictly(StopRequest))
