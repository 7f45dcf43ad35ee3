"""`pion stop`: ask a run's owner, on any machine, to save and stop; `--wait` waits for it."""

from __future__ import annotations

from collections.abc import Callable

from pion.errors import BadInput, PionError, Stopped
from pipeline.console.formats import duration, show
from pipeline.state.find_run import read_run
from pipeline.state.head import Head
from pipeline.state.heartbeat import HEARTBEAT_SECONDS
from pipeline.state.liveness import Unchanged
from pipeline.state.notes.stop_requests import ask_stop, clear_stops
from pipeline.state.owner import Owner, is_running
from pipeline.state.run_state import RunState
from pipeline.state.status.run_status import is_finished

REASON = "pion stop"
POLL_SECONDS = 2.0


def stop(run: str, *, wait: bool) -> None:
    """Ask `run` to stop; with `wait`, return when it has stopped.

    Raises BadInput if there is no such run, and PionError as `stop_run` does.
    """
    state, head = read_run(run)
    stop_run(state, head, wait=wait, say=show)


def stop_run(state: RunState, head: Head, *, wait: bool, say: Callable[[str], None]) -> None:
    """Leave a request to stop that the owner in `head` and every managed restart obey.

    A finished run gets no request. With `wait`, return when the run is released. Raises PionError
    if the owner dies before that or shows no sign of life.
    """
    name = state.name
    alive = is_running(head.owner, Owner.me()) if head.owner else False
    if alive is False and is_finished(state, head):
        say(f"{name} is finished: there is nothing to stop.")
        return
    ask_stop(state, REASON)
    if head.owner is None:
        say(
            f"Nobody owns {name}, so nothing is running now. A rental may still be booting or "
            "waiting for a machine; it obeys the request when it comes up "
            f"(`pion rentals {state.url}`). {_STAYS}"
        )
    elif alive is False:
        say(f"{_owner(head)} is dead, so nothing is running now. {_STAYS}")
    else:
        say(
            f"Asked {name} to stop. {_owner(head)} checks for requests every "
            f"{HEARTBEAT_SECONDS:.0f} s ({_last_sign(state, head)}). It will save and exit with "
            f"code {Stopped.exit_code}. {_STAYS}"
        )
        if wait:
            _wait(state, say)


_STAYS = (
    "The request stays in the store: managed restarts obey it, and a `pion run` that you start "
    "yourself clears it."
)


def _wait(state: RunState, say: Callable[[str], None]) -> None:
    """Block until nobody owns the run."""
    clock, store = state.clock, state.store
    unchanged, patience = Unchanged(clock), state.silence
    while True:
        head = state.read()
        if head is None:
            raise BadInput(f"Run {state.name} has just been deleted from {store.url}.")
        if head.owner is None:
            say(_how_it_ended(state, head))
            return
        if is_running(head.owner, Owner.me()) is False:
            raise PionError(
                f"{_owner(head)} died before it released {state.name}. {_saved(state, head)}"
            )
        sign = (head.epoch, head.write_ids[:1], state.heartbeat(head.epoch))
        if unchanged.seconds(sign) >= patience:
            raise PionError(
                f"{_owner(head)} has shown no sign of life for {duration(patience)}. "
                f"{_saved(state, head)} If its machine is gone, there is nothing left to stop. If "
                "the machine is only offline, the run stops once the machine reaches the store."
            )
        clock.sleep(POLL_SECONDS)


def _how_it_ended(state: RunState, head: Head) -> str:
    if is_finished(state, head):
        clear_stops(state)
        return (
            f"{state.name} finished its last stage before it saw the request. The request was "
            "removed."
        )
    return f"{state.name} has stopped. {_saved(state, head)}"


def _saved(state: RunState, head: Head) -> str:
    if not head.checkpoints:
        return "The run has no checkpoint yet. Finished stages are kept."
    newest = head.checkpoints[0]
    age = duration(state.clock.now() - newest.at)
    return f"The newest checkpoint, {newest.stage} step {newest.step:,}, was saved {age} ago."


def _owner(head: Head) -> str:
    assert head.owner is not None
    return f"Its owner, {head.owner.describe()},"


def _last_sign(state: RunState, head: Head) -> str:
    if state.store.commits:
        return "there is no heartbeat on this store"
    beat = state.heartbeat(head.epoch)
    if beat is None:
        return "no heartbeat yet"
    return f"last heartbeat {duration(state.clock.now() - beat['at'])} ago"
