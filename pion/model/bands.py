"""Which band of layers a parameter belongs to."""

from __future__ import annotations

from torch import nn

from pion.model.decoder import Decoder


def band_of_parameter(model: nn.Module, name: str) -> int | None:
    """Return the number of the band whose layers or banks have this parameter; None: no band."""
    if not isinstance(model, Decoder) or model.config.primitives is None:
        return None
    part, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if part == "bands":
        return int(number)
    return model.config.primitives.band_of()[int(number)] if part == "blocks" else None
