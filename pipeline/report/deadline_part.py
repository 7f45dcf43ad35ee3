"""What the page shows of a run's deadline, as JSON. Times are Unix seconds.

`known` is what `pipeline.state.deadline_status.deadline_json` returns, and `status` what
`pipeline.state.run_status.run_status` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.console.formats import moment
from pipeline.state.deadline_status import state_in_words


def deadline_part(
    known: Mapping[str, Any] | None, status: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return when the run should be done, when it was, and what its watcher saw last.

    Returns None if no deadline holds.
    """
    if known is None or known.get("at") is None:
        return None
    end = _finished_at(status)
    return {"at": known["at"], "finished_at": end, "saw": _saw(known) if end is None else None}


def deadline_notes(known: Mapping[str, Any] | None, status: Mapping[str, Any]) -> list[str]:
    """Return what a person should know about the deadline; nothing if all is well."""
    known = known or {}
    if "error" in known:
        return [f"the deadline can't be read: {known['error']}"]
    if known.get("at_risk_from") is None or _finished_at(status) is not None:
        return []
    return [
        f"nobody watches: the deadline is at risk from {moment(known['at_risk_from'])}, unless "
        "somebody runs `pion watch`"
    ]


def _saw(known: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the watcher saw, and when; None if it has not said."""
    beat = known.get("watcher") or {}
    saw = beat.get("saw")
    if saw is None:
        return None
    numbers = {name: saw[name] for name in ("slack", "reserve", "work_left")}
    return {"at": beat["at"], "words": state_in_words(saw["state"]), **numbers}


def _finished_at(status: Mapping[str, Any]) -> float | None:
    """Return when the last stage was done; None before that."""
    done = [about["at"] for about in status["stages"].values() if about["state"] == "done"]
    return max(done) if len(done) == len(status["stages"]) else None
