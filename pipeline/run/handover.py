"""The new machine's part in a hop: once it is up, it asks the old owner to save and hand over.

`pion hop` puts the epoch that owns the run into the new machine's environment. The old owner is
asked only when the new machine has come this far, so if a launch fails, the old owner keeps
training. An ordinary claim follows: the old owner saves and releases the run, and the new machine
takes it. If the old owner is silent, the new machine resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

from pion.errors import BadInput, PionError
from pipeline.state.head import Head
from pipeline.state.notes.stop_requests import ask_stop, pending_stop
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState

FROM_EPOCH = "PION_HOP_FROM_EPOCH"


def ask_for_handover(
    run: RunState,
    me: Owner,
    *,
    say: Callable[[str], None],
    fetch: Callable[[], object],
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Ask the owner that this machine replaces to save and stop, if it still owns the run.

    Before that, `fetch` downloads what is needed, while the old owner still works; it may fail. An
    owner that has claimed the run since is not asked. If nobody owns the run, a machine of the old
    rental may still be booting, and is asked to leave the run alone.
    Raises BadInput for a variable that is not an epoch, and StoreError.
    """
    text = environment.get(FROM_EPOCH)
    if not text:
        return
    if not text.isdigit():
        raise BadInput(
            f"{FROM_EPOCH} is {text!r}, but it must be an epoch number. Nothing was started."
        )
    head = run.read()
    if head is None or not relieves(head, int(text), me):
        return
    owner = head.owner
    if owner is not None:
        with contextlib.suppress(PionError):  # the claim fails on it again and reports it
            fetch()
    if pending_stop(run, launch_id=None if owner is None else owner.launch_id) is None:
        ask_stop(run, f"pion hop to {me.host}", except_launch=me.launch_id)
    if owner is not None:
        say(f"asked {owner.describe()} to save its work and hand the run over")


def relieves(head: Head, epoch: int, me: Owner) -> bool:
    """Return whether the owner of `epoch`, or another process of its launch, was the last owner."""
    old = next((claim.owner for claim in head.claims if claim.epoch == epoch), None)
    if old is None or any(claim.owner.launch_id == me.launch_id for claim in head.claims):
        return False
    last = head.claims[0].owner
    same_launch = old.launch_id is not None and old.launch_id == last.launch_id
    return same_launch or old.session == last.session
