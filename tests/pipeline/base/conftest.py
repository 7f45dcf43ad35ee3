"""A small model that somebody else has trained, as a folder that transformers wrote."""

import pytest

from pion.formats.export import export_model
from tests.support.finished_run import tiny_model, tiny_tokenizer


@pytest.fixture
def base(tmp_path):
    return export_base(tmp_path / "base")


def export_base(folder, seed=0):
    """Write a model that somebody else has trained."""
    tokenizer = tiny_tokenizer()
    file = folder.with_name(f"{folder.name}-tokenizer.json")
    tokenizer.save(file)
    export_model(tiny_model(tokenizer.vocab_size, seq_len=128, seed=seed), file, folder)
    return folder
