"""The token by which the nodes of one rental know each other."""

from __future__ import annotations

import secrets as random
from collections.abc import Mapping
from typing import Any

# sky/ray_token.sh gives it to Ray.
RAY_TOKEN = "PION_RAY_TOKEN"


def with_ray_token(config: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets of a task with a new random token, if the task has several nodes."""
    # SkyPilot takes `num_nodes: null` as 1, and a number in quotes as the number.
    if int(config.get("num_nodes") or 1) <= 1:
        return dict(secrets)
    return {**secrets, RAY_TOKEN: random.token_hex(32)}
