"""The config.json of a model to start from, and what Pion can't train of what it says.

What is refused here would otherwise fail on the rented machine, or train another model than the one
that was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import parse_object, read_file

CONFIG = "config.json"


def read_config(path: Path) -> ModelConfig:
    """Return the settings in a config.json, ours or transformers'.

    Raises BadInput for an architecture or a setting that Pion does not have, for weights that are
    quantized or packed, for a model that is no language model, and for code of its own.
    """
    from pion.exports.packed import is_packed
    from pion.exports.table import config_from_transformers

    settings = parse_object(read_file(path), CONFIG)
    if "model_type" not in settings:
        return ModelConfig.from_dict(settings)
    code = _code(settings)
    try:
        config = config_from_transformers(settings)
    except BadInput as error:
        also = f". The model also needs code of its own ({code}), which Pion never runs"
        raise BadInput(f"{error}{also if code else ''}") from None
    if is_packed(config):
        raise BadInput(
            "its ternary weights are packed, so it is no model to start from. Start from a "
            "checkpoint of the run that trained it (runs/NAME@pretrain)"
        )
    _require_stock(settings, code)
    return config


def _require_stock(settings: Mapping[str, Any], code: str | None) -> None:
    """Raise BadInput for a model whose weights are not those of its architecture."""
    from pion.exports.table import architecture_named

    architecture = architecture_named(settings["model_type"])
    if code is not None and architecture.stock:
        raise BadInput(
            f"config.json: auto_map names code of its own ({code}), which Pion never runs. Without "
            f"it, the model may be another one than {architecture.name}"
        )
    named = settings.get("architectures")
    if named is not None and (not isinstance(named, list) or architecture.name not in named):
        raise BadInput(
            f"config.json: architectures is {shown(named)}; only {architecture.name} is a language "
            "model that Pion can train"
        )
    quantized = settings.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise BadInput(
            f"config.json: quantization_config: its weights are quantized ({shown(method)}), and "
            "Pion trains float weights. Start from the model that was quantized: its page names it"
        )


def _code(settings: Mapping[str, Any]) -> str | None:
    """Return the model's own code that transformers would run; None if there is none."""
    named = settings.get("auto_map")
    if not isinstance(named, dict):
        return None
    kinds = ("AutoModelForCausalLM", "AutoModel")
    return next((shown(named[kind]) for kind in kinds if kind in named), None)
