"""Find shared data, or become the one who prepares it while the others wait.

That only one run prepares is a courtesy, and nothing depends on it: whoever finishes second uses
what the first has finished (folder.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pion.errors import BadInput
from pipeline.state.claim import Claim
from pipeline.state.head import TRASH_SECONDS, data_key
from pipeline.state.liveness import Unchanged, is_silent, last_change
from pipeline.state.owner import Owner, is_running
from pipeline.state.run_state import RunState
from pipeline.state.shared.records import (
    DataState,
    Writer,
    change_state,
    new_folder,
    read_state,
    swap_state,
)
from pipeline.state.stores import Store
from pipeline.state.stores.clock import Clock

# Seconds between two looks at what another run prepares. A store that collects writes into commits
# shows nothing sooner.
POLL_SECONDS = 2.0
COMMIT_POLL_SECONDS = 30.0


def find_or_prepare(
    run: RunState,
    fingerprint: str,
    epoch: int,
    me: Owner,
    waiting: Callable[[Writer, float], None],
    *,
    again: bool = False,
) -> str | Writer:
    """Return the id of the folder with the data that `run` needs, or this process as its writer.
    `me` owns the run, with the claim of this `epoch`.

    In the second case this process must prepare the data, in the folder that the record names. A
    mark for deletion is removed. While another run prepares the data, this call waits, and calls
    `waiting` with the writer and the seconds so far; it may raise. `again` asks for a new folder
    although there is one, and a later start of this run continues with that folder. A writer needs
    not say that it gives up: its run is released, or silent.

    Raises StoreError; then it may be called again.
    """
    store, clock = run.store, run.clock
    claim = Writer(run.name, epoch, me.session, me.host, "", clock.now())
    unchanged, since = Unchanged(clock), clock.monotonic()
    while True:
        state, version = read_state(store, fingerprint)
        begun_again = state.writer is not None and state.writer.run == claim.run
        if state.folder is not None and not again and not begun_again:
            if state.delete_after is None or swap_state(
                store, fingerprint, state.unmarked(), version
            ):
                return state.folder
            continue
        if state.writer is not None and state.writer.is_claim_of(claim):
            return state.writer
        sign = state.writer and _sign_of_life(store, state.writer, me, clock)
        if state.writer and sign and unchanged.seconds(sign) < run.silence:
            waiting(state.writer, clock.monotonic() - since)
            clock.sleep(COMMIT_POLL_SECONDS if store.commits else POLL_SECONDS)
            continue
        mine = dataclasses.replace(
            claim,
            folder=_own_folder(store, state.writer, claim, me) or new_folder(),
            at=clock.now(),
            replaces=state.folder,
        )
        if swap_state(store, fingerprint, dataclasses.replace(state, writer=mine), version):
            return mine


def bind(claim: Claim, part: str, fingerprint: str, folder: str) -> bool:
    """Let HEAD list the folder as a part of the data; return whether the run may use it.

    Call this before the folder is read: until HEAD lists it, anybody may delete it. Raises
    StoreError; then it may be called again.
    """
    key = data_key(fingerprint, folder)
    claim.commit(lambda head: head.with_data({**head.data, part: key}))
    return confirm(claim.store, fingerprint, folder)


def confirm(store: Store, fingerprint: str, folder: str) -> bool:
    """Return whether a run whose HEAD lists the folder may use it.

    Call this after HEAD was committed. Whoever deletes data reads every HEAD before the swap that
    makes the data unusable, so it has either seen that HEAD, or this call sees the swap. A mark for
    deletion is removed. Raises StoreError.
    """

    def use(state: DataState) -> DataState:
        return state.unmarked() if state.folder == folder else state

    return change_state(store, fingerprint, use).folder == folder


def _own_folder(store: Store, before: Writer | None, claim: Writer, me: Owner) -> str | None:
    """Return the folder that this run wrote to on this machine until its process died, to resume
    an upload there; None if there is none, or if that process may still write to it."""
    if before is None or before.run != claim.run:
        return None
    head = RunState(store, claim.run).read()
    owners = [] if head is None else [c.owner for c in head.claims if c.epoch == before.epoch]
    return before.folder if any(is_running(o, me) is False for o in owners) else None


def is_there(store: Store, fingerprint: str, folder: str) -> bool:
    """Return whether a fork of a run that uses the folder may use it; see `confirm`.

    Other than there, a newer folder may have replaced it. Raises StoreError.
    """
    if confirm(store, fingerprint, folder):
        return True
    state, _ = read_state(store, fingerprint)
    unneeded = any(item.folder == folder for item in state.unneeded)
    return not unneeded and bool(store.list(f"{data_key(fingerprint, folder)}/"))


def preparing(store: Store, state: DataState, me: Owner, clock: Clock) -> Writer | None:
    """Return the writer if a living process may be preparing the data; else None. Does not wait.

    A writer whose run showed no sign of life for an hour, by the clocks of both machines, does not
    count. If it is alive after all, it begins again with another folder.
    """
    writer = state.writer
    if writer is None or _sign_of_life(store, writer, me, clock) is None:
        return None
    run = RunState(store, writer.run, clock)
    try:
        head = run.read()
    except BadInput:
        head = None
    beat = run.heartbeat(writer.epoch)
    seen = max(writer.at, last_change(head) if head else 0.0, beat["at"] if beat else 0.0)
    return None if is_silent(seen, clock.now(), TRASH_SECONDS) else writer


def _sign_of_life(store: Store, writer: Writer, me: Owner, clock: Clock) -> object:
    """Return what changes while the writer lives; None if its claim has ended, or its process is
    dead. By these rules it is also decided who may take a run over."""
    run = RunState(store, writer.run, clock)
    try:
        head = run.read()
    except BadInput:  # of a newer pion, or damaged: only time can tell
        return (writer,)
    if head is None or head.owner is None or head.epoch != writer.epoch:
        return None
    if is_running(head.owner, me) is False:
        return None
    return (writer, run.heartbeat(head.epoch), head.write_ids[:1])
