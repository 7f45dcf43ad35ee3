"""Load a model from a folder: a checkpoint, or an export that transformers can also read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pion.config import ModelConfig
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.exports.table import from_transformers
from pion.model.decoder import Decoder
from pion.model.possible import require_possible
from pion.seeds import import_seed
from pion.untrusted import parse_object, read_file
from pion.weights import read_model_tensors

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


def load(
    source: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Decoder, Tokenizer | None]:
    """Return the model, on the CPU, and its tokenizer.

    The source is a folder (see `load_decoder`) with a tokenizer.json, or a seed's `.pt` file (no
    tokenizer). `dtype` is that of matrices: see `Decoder.from_state`. Raises BadInput for anything
    else.
    """
    source = Path(source)
    if source.suffix == ".pt":
        seed = import_seed(source)
        return Decoder.from_state(seed.config, seed.state_dict(), dtype), None
    decoder = load_decoder(source, dtype)
    tokenizer = Tokenizer.from_file(source / TOKENIZER)
    tokenizer.fits(decoder.config.vocab_size, where=str(source / TOKENIZER))
    return decoder, tokenizer


def load_decoder(folder: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Return the model of a folder with config.json and safetensors (model_files.py), on the CPU.

    config.json has the fields of ModelConfig, or of a stock architecture in transformers. `dtype`
    is that of matrices: see `Decoder.from_state`. Raises BadInput for a missing or damaged file,
    naming the file, and for weights that don't fit the settings.
    """
    folder = Path(folder)
    settings = _read_settings(folder / CONFIG)
    state = read_model_tensors(folder)
    try:
        if "model_type" in settings:
            config, state = from_transformers(settings, state)
        else:
            config = ModelConfig.from_dict(settings)
            require_possible(config, state)
        return Decoder.from_state(config, state, dtype)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return parse_object(read_file(path), str(path))
    except FileNotFoundError:
        raise BadInput(f"{path.parent} is not a model: it has no {path.name}") from None
    except OSError as error:
        raise BadInput(f"{path} can't be read ({error.strerror or error})") from None
