"""A result of `pion bench` on an A40, with numbers that nobody has measured."""

import dataclasses

from pion.bench.card import Card, file_name
from pion.bench.results import Results, Row, TrainSpeed, write_results
from pion.config.model_config import ModelConfig
from pion.model.params_and_flops import cost_of, flops_per_token

A40 = Card("NVIDIA A40", "8.6", 45 * 2**30, "570.1", "2.15.0", "13.2", "0.1.0", "0123456789ab")
DATE = "2026-11-20T10:00:00+00:00"
# How the results are named in notes.
SOURCE = "`pion bench` (NVIDIA A40, 2026-11-20, torch 2.15.0)"


def train_row(preset="pion-small", how="compiled", **changes):
    """Return the row of a preset that trains 50,000 tokens a second at 25 % MFU."""
    config = ModelConfig.preset(preset)
    speed = TrainSpeed(
        model=preset,
        params=cost_of(config).all_params,
        flops_per_token=flops_per_token(config, 2048),
        seq_len=2048,
        dtype="bfloat16",
        compiled=how == "compiled",
        recompute=False,
        micro_batch=16,
        tokens_per_second=50_000.0,
        mfu=0.25,
    )
    measures = dataclasses.asdict(dataclasses.replace(speed, **changes))
    return Row(f"train/{preset}/{how}", "measured", "fast", measures, 30.0)


def results(*rows, card=A40, **changes):
    """Return a result with these rows."""
    return dataclasses.replace(Results(card, DATE, False, rows), **changes)


def keep(folder, found):
    """Write the result into a folder, under the name of its card; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(found.card.card)
    write_results(path, found)
    return path
