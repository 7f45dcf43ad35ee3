"""Check of SkyPilot's controller, which recovers rentals that are taken away: where it will run."""

from __future__ import annotations

from pathlib import Path

from pipeline.rent.check.row import CheckRow
from pipeline.rent.skypilot import quiet, sky_module

NAME = "controller"
SETTING = "jobs: {controller: {consolidation_mode: true}}"


def check_controller() -> list[CheckRow]:
    """That the controller needs no machine of its own, and that SkyPilot has read so."""
    sky_module()
    from sky import skypilot_config
    from sky.jobs import constants
    from sky.server import common

    if not common.is_api_server_local():
        return [CheckRow(NAME, True, f"at the SkyPilot server {common.get_server_url()}")]
    key = ("jobs", "controller", "consolidation_mode")
    if not skypilot_config.get_nested(key, False):
        words = (
            "SkyPilot will rent a machine for it too, and send this checkout by way of a bucket. "
            f"To have it here, put `{SETTING}` into ~/.sky/config.yaml, then: sky api stop"
        )
        return [CheckRow(NAME, None, words)]
    read = Path(constants.JOBS_CONSOLIDATION_RELOADED_SIGNAL_FILE).expanduser().exists()
    if not read and _server_runs():
        words = (
            "the SkyPilot server that runs here has not read ~/.sky/config.yaml since it asks for "
            "consolidation_mode. Run: sky api stop"
        )
        return [CheckRow(NAME, False, words)]
    return [CheckRow(NAME, True, "on this machine, which must stay awake and online")]


def _server_runs() -> bool:
    from sky.server import common

    try:
        with quiet():
            common.check_server_healthy()
    except Exception:  # not running, or not one that could be asked
        return False
    return True
