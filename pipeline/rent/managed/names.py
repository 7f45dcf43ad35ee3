"""What a run's rental, SkyPilot's cluster for it and the pods of that cluster are called.

A run is rented for under one name, whichever machine asks. SkyPilot makes a cluster of it for each
managed job, `<rental name>-<job>-<who rented it>`, and a pod of a cluster, `<cluster>-head`.
"""

from __future__ import annotations

import hashlib
import re

from pipeline.rent.skypilot import quiet, sky_module

# How many characters of a run's name its rental's name keeps: of a name longer than 25 characters
# SkyPilot cuts the end for its machines, and POD_NAME would not know them as ours.
NAME_LENGTH = 11
# A person's own cluster, such as pion-a40-2, is not ours.
POD_NAME = re.compile(
    r"pion-(?:.+-)?[0-9a-f]{8}-(?P<job>\d+)-(?P<user>[0-9a-f]{8})-(?:head|worker)"
)


def rental_name(store_url: str, run: str) -> str:
    """Return the name of the managed jobs of a run: the same from any machine, and unique."""
    digest = hashlib.sha256(f"{store_url.rstrip('/')}/{run}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", run).strip("-")[:NAME_LENGTH].strip("-")
    return "-".join(filter(None, ("pion", readable.lower(), digest)))


def cluster_name(rental: str, job_id: int) -> str:
    """Return what SkyPilot calls the machine of a managed job; the cloud's name begins with it."""
    sky_module()
    from sky.jobs import utils

    with quiet():
        return utils.generate_managed_job_cluster_name(rental, job_id)


def my_hash() -> str:
    """Return what SkyPilot marks the machines with that are rented from here."""
    sky_module()
    from sky.utils import common_utils

    return common_utils.get_user_hash()
