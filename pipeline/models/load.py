"""Loads a found model and its tokenizer into memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.models.find import FoundModel, found_in
from pipeline.models.fit import fitted

if TYPE_CHECKING:
    import torch

    from pion.data.chat_format import ChatFormat
    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder


def load_model(found: FoundModel, dtype: torch.dtype | None = None) -> Decoder:
    """Load the weights into a Decoder on the CPU.

    `dtype` is that of matrices, by default float32. An adapter is merged with its base. Raises
    BadInput for other files, and for another base than an adapter's.
    """
    import torch

    from pion.load import load, load_decoder
    from pion.model.decoder import Decoder

    dtype = dtype or torch.float32
    if found.kind == "seed":
        return load(found.folder, dtype)[0]
    if found.base is not None:
        merged = _merged(found.folder, load_model(found.base), found.base.label)
        if dtype == torch.float32:
            return merged
        return Decoder.from_state(merged.config, merged.state_dict(), dtype)
    return load_decoder(found.folder, dtype)


def check_start(found: FoundModel, source: str, *, lora: bool) -> None:
    """Raise BadInput, before training, if `init_from: source` can't be the start of a stage.

    LoRA can't start from an adapter. Other training can, if its base is the right one.
    """
    if found.base is None:
        return
    if lora:
        raise BadInput(
            f"sft.init_from {source}: it is an adapter itself, and LoRA needs a whole model. "
            f"Nothing was lost. Merge the adapter first: pion export {source} FOLDER"
        )
    load_model(found)


def load_model_in(folder: Path) -> Decoder:
    """Load the model of a checkpoint's or an exported folder, with its base if it is an adapter."""
    return load_model(found_in(folder))


def _merged(folder: Path, base: Decoder, label: str) -> Decoder:
    from pion.load import load_adapter, trained_config

    config = trained_config(folder)
    if config is None or config == base.config:
        return load_adapter(folder, base)
    return load_adapter(folder, base, fitted(config, base, label))


def load_tokenizer(found: FoundModel) -> Tokenizer:
    """Load the tokenizer. Raises BadInput if the model has none."""
    from pion.data.tokenizer import Tokenizer

    if found.tokenizer is None:
        raise BadInput(
            f"{found.label} has no tokenizer. Copy the tokenizer.json that the model was trained "
            f"with into {found.folder if found.folder.is_dir() else found.folder.parent}"
            + (
                f", or make a folder of both: pion import-seed {found.folder} DIR --tokenizer FILE"
                if found.kind == "seed"
                else ""
            )
        )
    return Tokenizer.from_file(found.tokenizer)


def load_found(found: FoundModel, dtype: torch.dtype | None = None) -> tuple[Decoder, ChatFormat]:
    """Load the model and its chat format, with its tokenizer; `dtype` as in `load_model`.

    Raises BadInput if they don't fit each other.
    """
    from pion.data.chat_format import ChatFormat

    tokenizer = load_tokenizer(found)
    assert found.tokenizer is not None
    chat_format = ChatFormat(found.tokenizer, tokenizer)
    model = load_model(found, dtype)
    tokenizer.fits(model.config.vocab_size, where=str(found.tokenizer))
    return model, chat_format
