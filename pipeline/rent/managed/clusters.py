"""Get the status of SkyPilot's clusters on any cloud, from the cloud or from SkyPilot's records."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pion.errors import PionError
from pipeline.rent.managed.managed_jobs import asking_skypilot, controller_is_here


def clusters_now() -> Mapping[str, str] | None:
    """Ask the clouds for the status of every cluster. Return None if SkyPilot can't do this."""
    try:
        with asking_skypilot("ask the clouds for its machines"):
            from sky.client import sdk
            from sky.utils.common import StatusRefreshMode

            records = sdk.get(sdk.status(refresh=StatusRefreshMode.FORCE, all_users=True))
    except PionError:
        return None
    return {record["name"]: str(record["status"].value) for record in records}


def clusters_recorded(clusters: Collection[str]) -> Mapping[str, str | None]:
    """Return the status of these clusters in SkyPilot's records; None for an ended cluster.

    Unlike SkyPilot's list, the records include the clusters of managed jobs, if their controller
    runs on this machine. The records show the end of a cluster only after the cloud has confirmed
    that none of its machines is up. A cluster that was never recorded here is left out.
    """
    if not controller_is_here():
        return {}
    try:
        with asking_skypilot("read its records"):
            from sky import global_user_state

            records = global_user_state.get_clusters_from_history(cluster_names=sorted(clusters))
    except PionError:
        return {}
    found: dict[str, str | None] = {}
    for record in records:  # one for each cluster that ever had the name
        status = record["status"]
        found[record["name"]] = str(status.value) if status else found.get(record["name"])
    return found
