"""How the chunks of a loss are computed in tests."""

import pytest
import torch

from pion.model import chunks_of_logits


@pytest.fixture
def small_chunks(monkeypatch):
    """Use chunks of 16 rows of 1,000 logits, in tiles of 96 columns."""
    monkeypatch.setattr(chunks_of_logits, "CPU_CHUNK_BYTES", 16 * 1000 * 4)
    monkeypatch.setattr(chunks_of_logits, "CPU_TILE", 96)


@pytest.fixture(scope="module")
def without_compiler():
    """Run the functions that would be compiled as they are written: compiling takes seconds."""
    with torch.compiler.set_stance("force_eager"):
        yield
