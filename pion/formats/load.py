"""Load a model from a folder: a checkpoint, or an export that transformers can also read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pion.config.lora import (
    RECORD,
    Adapter,
    BaseModel,
    is_adapter,
    is_peft_folder,
    read_record,
    require_base,
)
from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.formats.huggingface.architectures import saved_from_transformers
from pion.formats.model_tensors import SavedTensors, read_adapter_tensors, saved_model_tensors
from pion.formats.peft_folder import our_names, read_adapter_folder
from pion.formats.seeds import import_seed
from pion.formats.weights import read_settings
from pion.model.decoder import SHARED_PARTS, Decoder
from pion.model.forward_pass import State
from pion.model.lazy_lora import LazyMerge
from pion.model.parameters import require_fitting, require_possible, tensors_sha256
from pion.model.saved_weights import Saved, Tensors, placeholders, without_values

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
    """Return the model of a folder with config.json and safetensors (weights.py), on the CPU.

    config.json has the fields of ModelConfig, or of a stock architecture in transformers. `dtype`
    is that of matrices: see `Decoder.from_state`. Raises BadInput for a missing or damaged file,
    naming the file, for weights that don't fit the settings, and for an adapter.
    """
    folder = Path(folder)
    config, saved = _load_lazily(folder)
    try:
        return Decoder.from_state(config, dict(Tensors(saved)), dtype)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None


def load_lazily(folder: Path) -> tuple[ModelConfig, SavedTensors]:
    """Return settings and weights as `load_decoder` does, without a decoder. Raises as it does.

    The weights have the types in the files, from which they are read when they are needed.
    """
    config, saved = _load_lazily(folder)
    try:
        require_fitting(without_values(config), placeholders(saved.layout()))
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None
    return config, saved


def _load_lazily(folder: Path) -> tuple[ModelConfig, SavedTensors]:
    """Return what `load_lazily` returns. Nobody has checked if the weights fit the settings."""
    if is_adapter(folder):
        raise BadInput(f"{folder} is an adapter: it can only be loaded with its base")
    settings = read_settings(folder / CONFIG, "a model")
    saved = saved_model_tensors(folder)
    try:
        if "model_type" in settings:
            return saved_from_transformers(settings, saved)
        config = ModelConfig.from_dict(settings)
        require_possible(config, placeholders(saved.layout()))
        return config, saved
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None


def packed(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
    """Return a model as it is published: parts may be packed."""
    for _, kind in SHARED_PARTS.values():
        config, state = kind.pack(config, state)
    return config, state


def identify(model: Decoder | Saved, name: str) -> BaseModel:
    """Return the identity of a base in fp32, as `load_decoder` returns it."""
    return BaseModel(
        name, tensors_sha256(model.state_dict() if isinstance(model, Decoder) else Tensors(model))
    )


def trained_config(folder: Path) -> ModelConfig | None:
    """Return the settings with which an adapter's base was trained; None: the base's own.

    A checkpoint records them: a job may train a base with a shorter context. Next to an adapter of
    peft, config.json is a copy of the base's. Raises BadInput.
    """
    if is_peft_folder(folder) or not (folder / CONFIG).is_file():
        return None
    return ModelConfig.from_dict(read_settings(folder / CONFIG, "a model"))


def load_adapter(
    folder: Path, base: tuple[ModelConfig, Saved], as_trained: tuple[ModelConfig, Saved]
) -> tuple[ModelConfig, Saved]:
    """Return settings and weights of the model of an adapter's folder, a checkpoint's or peft's,
    merged with its `base` when they are read.

    `as_trained` is the base with the settings of `trained_config`. Raises BadInput for a missing or
    damaged file, another base, and tensors that don't fit the base.
    """
    adapter, tensors = _read_adapter(folder)
    require_base(adapter.base, tensors_sha256(Tensors(base[1])), str(folder))
    config, saved = as_trained
    try:
        if is_peft_folder(folder):
            tensors = our_names(config, adapter, tensors)
        return config, LazyMerge(config, saved, adapter.lora, tensors)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None


def _read_adapter(folder: Path) -> tuple[Adapter, dict[str, Tensor]]:
    """Return an adapter's settings and its tensors, by the names in its file."""
    if is_peft_folder(folder):
        return read_adapter_folder(folder)
    record = read_record(folder)
    if record is None:
        raise BadInput(f"{folder} is not an adapter: it has no {RECORD}")
    return record, read_adapter_tensors(folder)
