"""Load a model from a folder: a checkpoint, or an export that transformers can also read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pion.config import ModelConfig
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.exports.table import from_transformers
from pion.model.decoder import Decoder
from pion.seeds import import_seed

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


def load(source: str | Path) -> tuple[Decoder, Tokenizer | None]:
    """Return the model, in fp32 on the CPU, and its tokenizer.

    The source is a folder (see `load_decoder`) with a tokenizer.json, or a seed's `.pt` file (no
    tokenizer). Raises BadInput for anything else.
    """
    source = Path(source)
    if source.suffix == ".pt":
        return import_seed(source), None
    decoder = load_decoder(source)
    tokenizer = Tokenizer.from_file(source / TOKENIZER)
    tokenizer.fits(decoder.config.vocab_size, where=str(source / TOKENIZER))
    return decoder, tokenizer


def load_decoder(folder: str | Path) -> Decoder:
    """Return the model of a folder with config.json and model.safetensors, in fp32 on the CPU.

    config.json has the fields of ModelConfig, or of a stock architecture in transformers. Raises
    BadInput for a missing or damaged file, naming the file, and for weights that don't fit the
    settings.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    settings = _read_settings(folder / CONFIG)
    weights = folder / WEIGHTS
    try:
        state = load_file(weights)
    except FileNotFoundError:
        raise BadInput(f"{folder} is not a model: it has no {WEIGHTS}") from None
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{weights} is damaged or can't be read ({error})") from None
    try:
        if "model_type" in settings:
            config, state = from_transformers(settings, state)
        else:
            config = ModelConfig.from_dict(settings)
        return Decoder.from_state(config, state)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInput(f"{path.parent} is not a model: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is damaged or can't be read ({error})") from None
    if not isinstance(settings, dict):
        raise BadInput(f"{path} has no settings: it should be a JSON object")
    return settings
