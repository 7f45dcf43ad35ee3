"""The names of tensors in GGUF files."""

from __future__ import annotations

from gguf import MODEL_ARCH, get_tensor_name_map

from pion.formats.gguf.tensors import BLOCK_NAMES, NAMES


def test_the_names_are_those_of_the_format() -> None:
    theirs = get_tensor_name_map(MODEL_ARCH.QWEN3, 2)
    dense = {theirs.get_name(name): short for name, short in NAMES.items()}
    assert all(found == short for found, short in dense.items())
    experts = get_tensor_name_map(MODEL_ARCH.QWEN3MOE, 2)
    for name, short in BLOCK_NAMES.items():
        table = experts if name == "mlp.gate" else theirs
        assert table.get_name(f"model.layers.1.{name}") == f"blk.1.{short}"
