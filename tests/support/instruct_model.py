"""A tiny model with a chat template and a tokenizer of its own, as a folder from the Hub."""

from tests.support.stock_models import saved, stock_model
from tests.support.tokenizer_kinds import write_files


def write_instruct_model(folder, kind, template, name="Qwen3", **changes):
    """Write the model `name` of STOCK with a tokenizer of this kind; return its folder."""
    changes = {"vocab_size": 400, "max_position_embeddings": 256} | changes
    saved(stock_model(name, **changes), folder)
    return write_files(kind, folder, template)
