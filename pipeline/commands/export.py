"""`pion export`: write a model to a folder that transformers can load, and check that it loads."""

from __future__ import annotations

import argparse
import json

from pipeline.console.formats import show
from pipeline.models.find import find_model
from pipeline.models.load import load_model, load_tokenizer

# Texts to compare logits on. Any English text would do.
_TEXTS = [text for text in (argparse.__doc__, json.__doc__) if text]


def export(
    model: str, folder: str, model_type: str | None = None, embeddings: str = "float32"
) -> int:
    """Export the model called `model` to `folder` and return 0.

    `model_type` asks for an architecture, and `embeddings` is the dtype of the rows of token ids.
    Raises BadInput for a model without a tokenizer or an architecture that can't compute the model,
    and PionError if transformers does not load the same model.
    """
    found = find_model(model)
    load_tokenizer(found)  # before torch is imported: it may be missing
    assert found.tokenizer is not None
    from pion.export import export_model, round_embeddings
    from pion.exports.tokenizer_files import exported_tokenizer
    from pion.verify import verify_export

    decoder = load_model(found)
    if embeddings == "bfloat16":
        round_embeddings(decoder)
    tokenizer = exported_tokenizer(found.tokenizer, imported=decoder.config.imported)
    export_model(decoder, tokenizer, folder, model_type=model_type)
    difference = verify_export(folder, decoder, tokenizer, _TEXTS, model_type=model_type)
    show(
        f"{folder}: {found.label}; loaded again with transformers, "
        f"logits differ by at most {difference:.1e}"
    )
    return 0
