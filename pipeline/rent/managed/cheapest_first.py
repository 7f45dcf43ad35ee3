"""Sort the machines that a YAML accepts by today's prices, the cheapest first.

For `sky launch`, SkyPilot compares prices itself. For a managed job, it tries the entries of
`any_of` in an arbitrary order (0.14 rented for $0.30 instead of $0.20), and a list in its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.rent.plan.prices import Offer, Prices, look_up
from pipeline.rent.sky_yaml import Candidate, SkyYaml

# If a YAML sets this variable to 1 in `envs`, its list may be sorted by price.
WANTED = "PION_CHEAPEST_FIRST"


def with_candidates(sky_yaml: SkyYaml, candidates: Sequence[Candidate]) -> SkyYaml:
    """Return a YAML that accepts only these candidates, in their order."""
    if len(candidates) == len(sky_yaml.candidates):
        return sky_yaml
    left = [candidate.resources.to_yaml_config() for candidate in candidates]
    listed = {"ordered" if sky_yaml.in_order else "any_of": left}
    config = {**sky_yaml.config, "resources": left[0] if len(left) == 1 else listed}
    return replace(sky_yaml, candidates=tuple(candidates), config=config)


def resources_by_price(sky_yaml: SkyYaml, prices: Prices | None) -> Any:
    """Return the YAML's `resources`: as written, or with spot first and then by price.

    A list is the user's order of preference and stays as it is, unless the YAML says otherwise.
    """
    listed = sky_yaml.in_order and sky_yaml.envs.get(WANTED) != "1"
    if listed or len(sky_yaml.candidates) == 1:
        return sky_yaml.config.get("resources")

    def turn(candidate: Candidate) -> tuple[bool, bool, float]:
        found = look_up(candidate, sky_yaml.num_nodes, prices)
        price = found.price if isinstance(found, Offer) else None
        return candidate.use_spot is False, price is None, price or 0.0

    candidates = sorted(sky_yaml.candidates, key=turn)
    return {"ordered": [candidate.resources.to_yaml_config() for candidate in candidates]}
