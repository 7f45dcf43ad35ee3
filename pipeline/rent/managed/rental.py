"""What belongs to the rental of a run: its names, its lock, its times, and whether there is one.

A run has one rental name on every machine. For each managed job, SkyPilot makes a cluster called
`<rental name>-<job>-<who rented it>`. A pod of the cluster is called `<cluster>-head`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
from collections.abc import Callable, Iterator

from pion.errors import BadInput
from pipeline.machine.folders import open_private, private_cache_folder
from pipeline.rent.skypilot import quiet, sky_module
from pipeline.state.find_run import open_run, read_run
from pipeline.state.rental_note import never_rented

# From the request for a machine until it has claimed the run. Pulling a 10 GB image and installing
# packages take minutes; a host that needs longer only wastes money. On a store where only commits
# are a sign of life, a machine that is up may wait COMMIT_SILENCE_SECONDS more to take over.
BOOT_SECONDS = 1200.0
# Seconds that a new machine gets, from the request until it owns the run. On a store where only
# commits are a sign of life, it may wait COMMIT_SILENCE_SECONDS more for a silent owner.
ARRIVE_SECONDS = 1800.0
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


def cluster_name(rental: str, job_id: int) -> str:
    """Return SkyPilot's cluster name for a managed job. The names of its pods start with it."""
    sky_module()
    from sky.jobs import utils

    with quiet():
        return utils.generate_managed_job_cluster_name(rental, job_id)


def my_hash() -> str:
    """Return the hash with which SkyPilot marks machines that are rented from here."""
    sky_module()
    from sky.utils import common_utils

    return common_utils.get_user_hash()


@contextlib.contextmanager
def rental_lock(name: str, purpose: str = "watch") -> Iterator[Callable[[], bool]]:
    """Yield a function that tries to lock the rental `name` for `purpose`, until the block ends.

    The function returns False while another process of this machine holds the lock. Call it again
    to try again. Raises BadInput if the lock's folder can't be made for this user alone.
    """
    path = private_cache_folder() / f"{purpose}-{name}.lock"
    with open(path, "ab", opener=open_private) as file:

        def try_lock() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield try_lock


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
