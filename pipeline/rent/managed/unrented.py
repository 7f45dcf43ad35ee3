"""Refuses, before SkyPilot and torch are loaded, to watch what was never rented."""

from __future__ import annotations

from pion.errors import BadInput
from pipeline.state.find_run import open_run, read_run
from pipeline.state.rental_note import never_rented


def refuse_unrented(run: str) -> None:
    """Raise BadInput if the store says that no machine was ever rented for `run`.

    To ask SkyPilot would start its server, which takes long and stays.
    """
    if never_rented(open_run(run)):
        raise nothing_to_watch(run)


def nothing_to_watch(run: str) -> BadInput:
    """Return the error for a run without a rental. Raises BadInput if there is no such run."""
    read_run(run)
    return BadInput(
        f"`pion launch` has rented nothing for {run} from this machine, and `pion watch` only "
        "follows such rentals. To see a run on another machine, or one that was started with "
        f"`sky jobs launch`: `pion status {run}`."
    )
