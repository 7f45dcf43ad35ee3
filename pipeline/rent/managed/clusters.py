"""Ask SkyPilot for the status of its clusters, of any cloud: from the cloud, or its own records."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pion.errors import PionError
from pipeline.rent.managed.managed_jobs import asking_skypilot, controller_is_here


def clusters_now() -> Mapping[str, str] | None:
    """Return the status of every cluster, asked of its cloud; None if SkyPilot can't say."""
    try:
        with asking_skypilot("ask the clouds for its machines"):
            from sky.client import sdk
            from sky.utils.common import StatusRefreshMode

            records = sdk.get(sdk.status(refresh=StatusRefreshMode.FORCE, all_users=True))
    except PionError:
        return None
    return {record["name"]: str(record["status"].value) for record in records}


def clusters_recorded(clusters: Collection[str]) -> Mapping[str, str | None]:
    """Return the status of these clusters in SkyPilot's records; None for those that have ended.

    Unlike SkyPilot's list, the records have the clusters of managed jobs too, if their controller
    runs on this machine. There, a cluster only ends once its cloud was asked and has no machine of
    it up. A cluster that was never recorded here is left out.
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
    for record in records:  # one for each time that a cluster of the name was made
        status = record["status"]
        found[record["name"]] = str(status.value) if status else found.get(record["name"])
    return found
