"""Loads a found model and its tokenizer into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.models.find import FoundModel

if TYPE_CHECKING:
    import torch

    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder


def load_model(found: FoundModel, dtype: torch.dtype | None = None) -> Decoder:
    """Load the weights into a Decoder on the CPU.

    `dtype` is that of matrices, by default float32. Raises BadInput for other files.
    """
    import torch

    from pion.load import load, load_decoder

    dtype = dtype or torch.float32
    if found.kind == "seed":
        return load(found.folder, dtype)[0]
    return load_decoder(found.folder, dtype)


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


def load_found(found: FoundModel, dtype: torch.dtype | None = None) -> tuple[Decoder, Tokenizer]:
    """Load the model and its tokenizer; `dtype` as in `load_model`.

    Raises BadInput if they don't fit each other.
    """
    tokenizer = load_tokenizer(found)
    model = load_model(found, dtype)
    tokenizer.fits(model.config.vocab_size, where=str(found.tokenizer))
    return model, tokenizer
