"""Saved tensors: any elements are read, of one tensor or of several that follow each other."""

import torch
from safetensors.torch import save_file

from pion.formats.model_tensors import Rows, SavedTensors
from pion.formats.weights import tensor_hashes
from pion.model.saved_weights import Tensors

ROWS = {"first": torch.arange(12.0), "second": torch.arange(12.0, 24.0), "none": torch.empty(0, 3)}


def test_any_elements_are_read_from_one_tensor_or_several():
    shapes = {"w": torch.Size((6, 4)), "none": torch.Size((0, 3))}
    sources = {"w": [Rows("first"), Rows("second")], "none": [Rows("none")]}
    saved = SavedTensors.of(ROWS).joined({name: (shapes[name], sources[name]) for name in shapes})
    assert saved.layout() == {name: (shape, torch.float32) for name, shape in shapes.items()}
    every = torch.arange(24.0)
    assert torch.equal(Tensors(saved)["w"], every.view(6, 4))
    for start in range(25):
        for stop in range(start, 25):
            assert torch.equal(saved.part("w", start, stop), every[start:stop])
    assert saved.part("w", 12, 24).data_ptr() == saved.part("w", 12, 13).data_ptr(), "not copied"


def test_rows_of_a_tensor_are_not_copied():
    whole = torch.arange(24.0).view(6, 2, 2)
    last = {"last": (torch.Size((2, 2, 2)), [Rows("whole", 4, 6)])}
    rows = SavedTensors.of({"whole": whole}).joined(last)
    assert torch.equal(Tensors(rows)["last"], whole[4:])
    assert rows.part("last", 0, 8).data_ptr() == whole[4:].data_ptr()


def test_each_tensor_of_a_file_has_a_hash_of_its_own(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(ROWS, path, {"format": "pt"})
    before = tensor_hashes(path)
    assert before.keys() == ROWS.keys()
    save_file(ROWS | {"second": ROWS["second"] + 1}, path)
    after = tensor_hashes(path)
    assert {name for name in ROWS if before[name] != after[name]} == {"second"}
