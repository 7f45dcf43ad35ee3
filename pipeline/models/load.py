"""Loads a found model and its tokenizer into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.models.find import FoundModel

if TYPE_CHECKING:
    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder


def load_model(found: FoundModel) -> Decoder:
    """Load the weights into a Decoder, in float32 on the CPU. Raises BadInput for other files."""
    if found.kind == "seed":
        from pion.seeds import import_seed

        return import_seed(found.folder)
    from pion.load import load_decoder

    return load_decoder(found.folder)


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


def load_found(found: FoundModel) -> tuple[Decoder, Tokenizer]:
    """Load the model and its tokenizer. Raises BadInput if they don't fit each other."""
    tokenizer = load_tokenizer(found)
    model = load_model(found)
    tokenizer.fits(model.config.vocab_size, where=str(found.tokenizer))
    return model, tokenizer
