"""What the page of a run says about recipes and banks (pion/config/primitives.py)."""

from __future__ import annotations

import math
from typing import Any

from pion.config.primitives import WAYS
from pipeline.console.formats import number_or_dash
from pipeline.report.blocks import table_block, text_block
from pipeline.report.history import STAGE_NAMES, RunHistory


def recipe_blocks(history: RunHistory) -> list[dict[str, Any]]:
    """Say how sure each layer is, and what is used of each bank."""
    measured, config = history.measured("primitives_used"), history.job.model_config_resolved()
    primitives = config.primitives
    if primitives is None or not measured:
        return []
    n, experts = primitives.n, 0 if config.experts is None else config.experts.n
    last = [rows[-1] for rows in measured.values()]
    names = [f"bands.{band}.{way}" for band in range(len(primitives.bands)) for way in WAYS]
    banks = []
    for name, values in zip(names, zip(*(row["primitives_used"] for row in last))):
        dead = [None if used is None else n - used for used in values]
        banks.append([name, *(number_or_dash(v, 0) for pair in zip(values, dead) for v in pair)])
    layers = []
    for i, values in enumerate(zip(*(row.get("recipe_entropy", ()) for row in last))):
        # A row of `Decoder.recipes` belongs to a layer, or to one of its experts.
        name = f"blocks.{i // experts}.recipes.{i % experts}" if experts else f"blocks.{i}"
        layers.append([name, *map(number_or_dash, values)])
    used = [cell for stage in measured for cell in (f"{STAGE_NAMES[stage]}: used", "dead")]
    entropies = ["layer", *(f"{STAGE_NAMES[stage]}: entropy" for stage in measured)]
    return [
        table_block(["bank", *used], banks),
        table_block(entropies, layers),
        text_block(
            "After the last step. Used: the primitives of a bank that some layer of its band "
            "chooses; dead: those that no layer chooses. Entropy of a layer's two recipes: "
            f"{math.log(n):.3f} nats if all {n} primitives weigh the same, 0 if one has all the "
            "weight.",
            faint=True,
        ),
    ]
