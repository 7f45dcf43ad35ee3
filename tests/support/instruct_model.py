"""A tiny model with a chat template and a tokenizer of its own, as a folder from the Hub."""

from pathlib import Path

from tests.support.stock_models import saved, stock_model
from tests.support.tokenizer_kinds import write_files


def write_instruct_model(
    folder: Path, kind: str, template: str | None, name: str = "Qwen3"
) -> Path:
    """Write the model `name` of STOCK with a tokenizer of this kind; return its folder."""
    saved(stock_model(name, vocab_size=400, max_position_embeddings=256), folder)
    return write_files(kind, folder, template)
