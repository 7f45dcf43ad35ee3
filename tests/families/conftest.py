import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices this small gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)
