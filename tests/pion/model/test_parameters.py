"""The hash of tensors is that of their names, shapes and values, however a file stores them."""

import torch

from pion.model.parameters import tensors_sha256

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.5), "c": torch.tensor([1, 2])}
KNOWN = "5197864d9c6063c91329fb7b2d0b0d0b2e59013fdeaaa18d77841b62dc484b11"


def test_a_known_hash_never_changes():
    assert tensors_sha256(TENSORS) == KNOWN


def test_neither_the_order_nor_the_storage_counts():
    again = dict(reversed(TENSORS.items())) | {
        "a": TENSORS["a"].bfloat16(),
        "b": TENSORS["b"].double(),
    }
    assert tensors_sha256(again) == KNOWN


def test_a_name_a_shape_and_a_value_count():
    for change in (
        {"a": TENSORS["a"].view(3, 2)},
        {"a": TENSORS["a"] + torch.eye(2, 3) * 1e-6},
        {"d": torch.zeros(1)},
        {"c": torch.tensor([1, 3])},
    ):
        assert tensors_sha256(TENSORS | change) != KNOWN
    assert tensors_sha256({n + "x": t for n, t in TENSORS.items()}) != KNOWN
