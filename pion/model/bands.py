"""The bands of a model with primitives: which banks the layers share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pion.config import ModelConfig
from pion.model.pilon.banks import Band, recipe_of
from pion.model.varying import OF_THE_MODEL, Varying
from pion.primitives import WAYS, Primitives


class Mixing(NamedTuple):
    """What a layer mixes: the banks of its band, of which it uses `top_k` primitives.

    `rank` is how many ranks of each primitive it uses, if not all.
    """

    band: Band
    top_k: int
    rank: int | None = None


class Bands(nn.ModuleList):
    """The banks of each band, in the order of the model's settings."""

    def __init__(self, config: ModelConfig, settings: Primitives) -> None:
        super().__init__(Band(config, number) for number in range(len(settings.bands)))
        self.settings = settings
        self.band_of = settings.band_of()
        self._rows_in_layer = 1 if config.experts is None else config.experts.n

    def mixing(self, layer: int, varying: Varying = OF_THE_MODEL) -> Mixing:
        """Return what a layer mixes its feed-forward matrices of."""
        band = self[self.band_of[layer]]
        assert isinstance(band, Band)
        return Mixing(band, varying.top_k or self.settings.top_k, varying.rank)

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Return the rows of `Decoder.recipes` that share the banks of each band."""
        each = self._rows_in_layer
        return tuple(
            tuple(each * layer + number for layer in band for number in range(each))
            for band in self.settings.bands
        )

    def check_packed(self, recipes: Tensor) -> None:
        """Raise BadInput for packed banks that are damaged or lack a primitive of the recipes."""
        if self.settings.stored is None:
            return
        for number, rows in enumerate(self.rows()):
            band = self[number]
            assert isinstance(band, Band)
            for way, bank, logits in zip(WAYS, (band.up, band.down), recipes, strict=True):
                chosen = [recipe_of(logits[row], self.settings.top_k).chosen for row in rows]
                bank.check_packed(f"bands.{number}.{way}", torch.cat(chosen))


def band_of_parameter(model: nn.Module, name: str) -> int | None:
    """Return the number of the band whose layers or banks have this parameter; None: no band."""
    bands = getattr(model, "bands", None)
    if not isinstance(bands, Bands):
        return None
    part, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if part == "bands":
        return int(number)
    return bands.band_of[int(number)] if part == "blocks" else None
