"""A checkpoint in parts: read like a whole one, and what is wrong with parts that are not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pion.errors import BadInput
from pion.formats.model_tensors import read_model_tensors
from pion.formats.parts import MODEL, Elements, part_metadata, part_name, read_saved
from pion.formats.tensor_hashes import tensor_hashes

SHAPES = {"w": (6, 4), "stack": (2, 3, 2), "scalar": (), "empty": (0, 3)}
# The elements that each of two ranks has; of stacks, rows of each matrix.
RANGES: list[dict[str, list[tuple[int, int]]]] = [
    {"w": [(0, 12)], "stack": [(0, 4), (6, 10)], "scalar": [(0, 1)], "empty": []},
    {"w": [(12, 24)], "stack": [(4, 6), (10, 12)]},
]


def whole() -> dict[str, torch.Tensor]:
    return {n: torch.arange(float(torch.Size(s).numel())).view(s) for n, s in SHAPES.items()}


def write_part(folder: Path, rank: int, count: int = 2) -> Path:
    tensors = {name: tensor.reshape(-1) for name, tensor in whole().items()}
    ranges = RANGES[rank]
    own = {n: torch.cat([tensors[n][:0], *(tensors[n][a:b] for a, b in ranges[n])]) for n in ranges}
    elements = {n: Elements(SHAPES[n], tuple(some)) for n, some in ranges.items()}
    path = folder / part_name(MODEL, rank, count)
    save_file(own, path, part_metadata(rank, count, elements))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for rank in (0, 1):
        write_part(tmp_path, rank)
    return tmp_path


def test_parts_are_read_as_whole_tensors(folder: Path) -> None:
    found = read_model_tensors(folder)
    assert found.keys() == SHAPES.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole().items())
    assert all(found[name].shape == tensor.shape for name, tensor in whole().items())


def test_any_elements_are_read_from_one_part_or_several(folder: Path) -> None:
    saved = read_saved(folder, MODEL)
    assert saved.layout() == {n: (torch.Size(s), torch.float32) for n, s in SHAPES.items()}
    for name, tensor in whole().items():
        for start in range(tensor.numel() + 1):
            for stop in range(start, tensor.numel() + 1):
                part = saved.part(name, start, stop)
                assert torch.equal(part, tensor.reshape(-1)[start:stop])


def test_elements_of_one_part_are_not_copied(folder: Path) -> None:
    saved = read_saved(folder, MODEL)
    assert saved.part("w", 12, 24).data_ptr() == saved.part("w", 12, 13).data_ptr()


def test_a_whole_file_is_read_in_the_same_way(tmp_path: Path) -> None:
    save_file(whole(), tmp_path / "model.safetensors")
    saved = read_saved(tmp_path, MODEL)
    assert torch.equal(saved.part("stack", 3, 8), whole()["stack"].view(-1)[3:8])
    assert torch.equal(saved.tensors()["w"], whole()["w"])


def test_a_tensor_has_one_hash_however_many_ranks_saved_it(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    save_file(whole(), one / "model.safetensors")
    assert tensor_hashes(folder) == tensor_hashes(one)
    save_file(whole() | {"w": whole()["w"] + 1}, one / "model.safetensors")
    assert tensor_hashes(folder)["w"] != tensor_hashes(one)["w"]


# ---------------------------------------------------------------- what is wrong


def change(path: Path, change: Callable[[dict[str, Any]], None], **tensors: torch.Tensor) -> None:
    """Write a part again with other elements in its list, or with other tensors."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    elements = json.loads(metadata["elements"])
    change(elements)
    metadata["elements"] = json.dumps(elements)
    save_file(load_file(path) | tensors, path, metadata)


def second(folder: Path) -> Path:
    return folder / "model-2-of-2.safetensors"


def is_missing(folder: Path) -> None:
    second(folder).unlink()


def is_twice(folder: Path) -> None:
    second(folder).write_bytes((folder / "model-1-of-2.safetensors").read_bytes())


def is_of_three(folder: Path) -> None:
    second(folder).rename(folder / "model-2-of-3.safetensors")


def has_a_third(folder: Path) -> None:
    write_part(folder, 0).rename(folder / "model-3-of-2.safetensors")
    write_part(folder, 0)


def is_one_of_none(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.unlink()
    (folder / "model-1-of-0.safetensors").touch()


def is_one_of_a_billion(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.unlink()
    (folder / "model-1-of-1000000000.safetensors").touch()


def lacks_rows(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w=[[6, 4], [[16, 24]]]), w=torch.zeros(8))


def has_rows_of_the_other(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w=[[6, 4], [[8, 24]]]), w=torch.zeros(16))


def ends_early(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w=[[6, 4], [[12, 20]]]), w=torch.zeros(8))


def has_another_type(folder: Path) -> None:
    change(second(folder), lambda e: None, w=torch.zeros(12, dtype=torch.bfloat16))


def has_another_shape(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w=[[4, 6], [[12, 24]]]))


def has_fewer_elements_than_it_says(folder: Path) -> None:
    change(second(folder), lambda e: None, w=torch.zeros(11))


def has_elements_beyond_the_tensor(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w=[[6, 4], [[12, 25]]]), w=torch.zeros(13))


def goes_backwards(folder: Path) -> None:
    change(second(folder), lambda e: e.update(stack=[[2, 3, 2], [[10, 12], [4, 6]]]))


def has_negative_elements(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w=[[6, 4], [[-12, 0]]]))


def has_no_list(folder: Path) -> None:
    save_file(load_file(second(folder)), second(folder), {"part": "2 of 2"})


def has_no_metadata(folder: Path) -> None:
    save_file(load_file(second(folder)), second(folder))


def lists_nonsense(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w={"rows": "all"}))


def has_a_tensor_that_it_does_not_list(folder: Path) -> None:
    change(second(folder), lambda e: None, v=torch.zeros(2))


def is_cut_short(folder: Path) -> None:
    second(folder).write_bytes(second(folder).read_bytes()[:-4])


def is_a_link_to_nothing(folder: Path) -> None:
    second(folder).unlink()
    second(folder).symlink_to(folder / "nothing")


def is_a_link_to_itself(folder: Path) -> None:
    second(folder).unlink()
    second(folder).symlink_to(second(folder))


def has_a_range_of_no_elements(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w=[[6, 4], [[12, 12], [12, 24]]]))


def has_nine_dimensions(folder: Path) -> None:
    change(second(folder), lambda e: e.update(w=[[6, 4, *([1] * 7)], [[12, 24]]]))


def has_a_shape_that_no_tensor_has(folder: Path) -> None:
    first = folder / "model-1-of-2.safetensors"
    change(first, lambda e: e.update(empty=[[2**62, 2**62, 0], []]))


WRONG = {
    is_missing: r"model-2-of-2\.safetensors is missing",
    is_twice: "says that it is part '1 of 2', but should be part 2 of 2",
    is_of_three: "model files of 2 and 3 ranks, which are of different checkpoints",
    has_a_third: r"'model-3-of-2\.safetensors' is of no part: there are 2",
    is_one_of_none: "claims that there are 0 parts; 1 to 500 are possible",
    is_one_of_a_billion: "claims that there are 1,000,000,000 parts; 1 to 500 are possible",
    lacks_rows: "of 'w', the elements from 12 to 16 are in no part",
    has_rows_of_the_other: "of 'w', the elements from 8 to 12 are in two parts",
    ends_early: "of 'w', the elements from 20 to 24 are in no part",
    has_another_type: "parts of 'w' have different types: torch.bfloat16 and torch.float32",
    has_another_shape: r"claim different shapes of 'w': \(4, 6\) and \(6, 4\)",
    has_fewer_elements_than_it_says: r"it should have 12 elements, but has the shape \[11\]",
    has_elements_beyond_the_tensor: r"of 'w', it claims the elements .*; no tensor has them",
    goes_backwards: "of 'stack', it claims the elements .*; no tensor has them",
    has_negative_elements: "of 'w', it claims the elements .*; no tensor has them",
    has_no_list: r"the list of elements in .*2-of-2\.safetensors is not valid JSON",
    has_no_metadata: "says that it is part None, but should be part 2 of 2",
    lists_nonsense: "of 'w', it claims the elements .*; no tensor has them",
    has_a_tensor_that_it_does_not_list: "has 'v' only as a tensor, or only in its list",
    is_cut_short: r"2-of-2\.safetensors is damaged or can't be read",
    is_a_link_to_nothing: r"2-of-2\.safetensors was deleted while it was read, or is a link to a",
    is_a_link_to_itself: r"2-of-2\.safetensors can't be read \(Too many levels of symbolic links",
    has_a_range_of_no_elements: "of 'w', it claims the elements .*; no tensor has them",
    has_nine_dimensions: "of 'w', it claims the elements .*; no tensor has them",
    has_a_shape_that_no_tensor_has: "of 'empty', it claims the elements .*; no tensor has them",
}


@pytest.mark.parametrize("part", WRONG, ids=lambda part: part.__name__)
def test_refuses_if_a_part(part: Callable[[Path], None], folder: Path) -> None:
    part(folder)
    for read in (partial(read_saved, kind=MODEL), read_model_tensors):
        with pytest.raises(BadInput, match=WRONG[part]) as refused:
            read(folder)
        assert str(folder) in str(refused.value)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for folder in (loop, tmp_path / ("long" * 100)):
        for read in (partial(read_saved, kind=MODEL), read_model_tensors):
            with pytest.raises(BadInput, match="can't be read") as refused:
                read(folder)
            assert str(folder) in str(refused.value)
