"""A hop, seen from the new machine: once it is up it asks the old owner to save and hand over.

`pion hop` rents the new machine with the epoch that owned the run in its environment. Until the
new one has come this far nobody is asked anything, so a launch that fails leaves the old owner
training. What follows is an ordinary claim: the old owner saves, releases the run, and the new one,
which waits, takes it; or the old one is silent, and then its last checkpoint is gone on from.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

from pion.errors import BadInput, PionError
from pipeline.state.owner import Owner
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.stop_requests import ask_stop, pending_stop

FROM_EPOCH = "PION_HOP_FROM_EPOCH"


def ask_for_handover(
    run: RunState,
    me: Owner,
    *,
    say: Callable[[str], None],
    fetch: Callable[[], object],
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Ask the owner that this machine was rented to relieve to save and stop, if it owns the run.

    `fetch` brings here, while the old owner still works, what is known to be needed; it may fail.
    An owner that has come since, a person's or this launch's own, is not asked. Where nobody owns
    the run, a machine of the old rental may be on its way, and is told to leave the run alone.
    Raises `BadInput` for a variable that is no epoch, `StoreError`.
    """
    text = environment.get(FROM_EPOCH)
    if not text:
        return
    if not text.isdigit():
        raise BadInput(f"{FROM_EPOCH} is {text!r}, which is no epoch. Nothing was started.")
    head = run.read()
    if head is not None and head.owner is None and relieves(head, int(text), me):
        if pending_stop(run) is None:
            ask_stop(run, _reason(me), except_launch=me.launch_id)
        return
    if head is None or not relieves(head, int(text), me):
        return
    with contextlib.suppress(PionError):  # the claim meets it again, where it can be said
        fetch()
    assert head.owner is not None
    if pending_stop(run, launch_id=head.owner.launch_id) is None:
        ask_stop(run, _reason(me), except_launch=me.launch_id)
    say(f"asked {head.owner.describe()} to save its work and hand the run over")


def _reason(me: Owner) -> str:
    return f"pion hop to {me.host}"


def relieves(head: Head, epoch: int, me: Owner) -> bool:
    """Whether who owned `head` under `epoch`, that process or its launch, had it last."""
    if any(claim.owner.launch_id == me.launch_id for claim in head.claims):
        return False
    for claim in head.claims:
        if claim.epoch == epoch:
            last = head.claims[0].owner
            same_launch = claim.owner.launch_id and claim.owner.launch_id == last.launch_id
            return bool(same_launch) or claim.owner.session == last.session
    return False
