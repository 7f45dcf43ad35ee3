"""`pion export`: write a model to a folder that transformers can load, and check that it loads."""

from __future__ import annotations

import argparse
import json

from pipeline.models.find import find_model
from pipeline.models.load import load_model, load_tokenizer

# Texts to compare logits on. Any English text would do.
_TEXTS = [text for text in (argparse.__doc__, json.__doc__) if text]


def export(model: str, folder: str) -> int:
    """Export the model called `model` to `folder` and return 0.

    Raises BadInput for a model without a tokenizer, and PionError if transformers does not load
    the same model.
    """
    found = find_model(model)
    load_tokenizer(found)  # before torch is imported: it may be missing
    assert found.tokenizer is not None
    from pion.export import export_model, verify_export

    decoder = load_model(found)
    export_model(decoder, found.tokenizer, folder)
    difference = verify_export(folder, decoder, found.tokenizer, _TEXTS)
    print(
        f"{folder}: {found.label}; loaded again with transformers, "
        f"logits differ by at most {difference:.1e}"
    )
    return 0
