"""Export a model with random weights, for comparisons whose text does not matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pion.config.model_config import ModelConfig
from pion.formats.export import export_model
from pion.model.decoder import Decoder

TOKENIZER = Path(__file__).parent.parent / "jobs" / "pile_tokenizer.json"


def export_random(folder: Path, quick: bool) -> Path:
    """Export Pion-small (103M), or with `quick` a tiny model, and return the folder."""
    config = ModelConfig.preset("pion-small")
    if quick:
        config = replace(config, d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=128)
    torch.manual_seed(0)
    export_model(Decoder(config), TOKENIZER, folder)
    return folder
