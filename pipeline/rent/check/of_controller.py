"""Check where SkyPilot's controller will run. It replaces rented machines that are taken away."""

from __future__ import annotations

from pathlib import Path

from pipeline.rent.check.row import CheckRow
from pipeline.rent.skypilot import quiet, sky_module

NAME = "controller"
SETTING = "jobs: {controller: {consolidation_mode: true}}"


def check_controller() -> list[CheckRow]:
    """Check that the controller needs no extra machine, and that SkyPilot has read this setting."""
    sky_module()
    from sky import skypilot_config
    from sky.jobs import constants
    from sky.server import common

    if not common.is_api_server_local():
        return [CheckRow(NAME, True, f"at the SkyPilot server {common.get_server_url()}")]
    key = ("jobs", "controller", "consolidation_mode")
    if not skypilot_config.get_nested(key, False):
        words = (
            "SkyPilot will rent an extra machine for its controller, and copy this git checkout to "
            "that machine through a storage bucket. To keep the controller on this machine, put "
            f"`{SETTING}` into ~/.sky/config.yaml. Then run: sky api stop"
        )
        return [CheckRow(NAME, None, words)]
    read = Path(constants.JOBS_CONSOLIDATION_RELOADED_SIGNAL_FILE).expanduser().exists()
    if not read and _server_runs():
        words = (
            "the SkyPilot server on this machine has not read consolidation_mode from "
            "~/.sky/config.yaml yet. Run: sky api stop"
        )
        return [CheckRow(NAME, False, words)]
    return [CheckRow(NAME, True, "on this machine, which must stay awake and online")]


def _server_runs() -> bool:
    from sky.server import common

    try:
        with quiet():
            common.check_server_healthy()
    except Exception:  # not running, or it does not answer
        return False
    return True
