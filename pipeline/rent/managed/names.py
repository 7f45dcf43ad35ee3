"""The names of a run's rental, of SkyPilot's cluster for it, and of the cluster's pods.

A run has one rental name on every machine. For each managed job, SkyPilot makes a cluster called
`<rental name>-<job>-<who rented it>`. A pod of the cluster is called `<cluster>-head`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re

from pion.errors import BadInput
from pipeline.machine.time_limit import within
from pipeline.rent.skypilot import sky_module
from pipeline.state.find_run import open_run, read_run
from pipeline.state.notes.rental_note import never_rented

# How many characters of a run's name are in its rental's name. SkyPilot shortens names of more than
# 25 characters for its machines, and POD_NAME would not match those.
NAME_LENGTH = 11
# A person's own cluster, such as pion-a40-2, is not ours.
POD_NAME = re.compile(
    r"pion-(?:.+-)?[0-9a-f]{8}-(?P<job>\d+)-(?P<user>[0-9a-f]{8})-(?:head|worker)"
)


def rental_name(store_url: str, run: str) -> str:
    """Return the name of a run's managed jobs. It is unique, and the same on every machine."""
    digest = hashlib.sha256(f"{store_url.rstrip('/')}/{run}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", run).strip("-")[:NAME_LENGTH].strip("-")
    return "-".join(filter(None, ("pion", readable.lower(), digest)))


@functools.cache
def cluster_name(rental: str, job_id: int) -> str:
    """Return SkyPilot's cluster name for a managed job. The names of its pods start with it."""
    sky_module()
    from sky.jobs import utils

    return utils.generate_managed_job_cluster_name(rental, job_id)


# How many seconds the store may take to say that nothing was rented.
STORE_SECONDS = 10.0


def refuse_unrented(run: str) -> None:
    """Raise BadInput if the run's store says that no machine was ever rented for it.

    To ask SkyPilot would start its server, which takes long and stays. If the store does not answer
    in time, leave it to SkyPilot.
    """
    state = open_run(run)
    with contextlib.suppress(TimeoutError):
        if within(STORE_SECONDS, lambda: never_rented(state)):
            raise nothing_to_watch(run)


def nothing_to_watch(run: str) -> BadInput:
    """Return the error for a run without a rental. Raises BadInput if there is no such run."""
    read_run(run)
    return BadInput(
        f"`pion launch` has rented nothing for {run} from this machine, and `pion watch` only "
        "follows such rentals. To see a run on another machine, or one that was started with "
        f"`sky jobs launch`: `pion status {run}`."
    )
