"""Weights in the safetensors format that lie about themselves."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pion.errors import BadInput
from pion.formats.load import load_decoder
from pion.formats.weights import MOST_TENSORS, read_tensors
from pion.untrusted import LARGEST_RECORD
from tests.hostile.in_process import NO_FILES, refused
from tests.hostile.model_folders import DEEP, model_folder, raw_safetensors, weights


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "no length": {"header": b""},
    "a length of 2^40": {"header": "{}", "length": 2**40},
    "blanks": {"header": b" " * (LARGEST_RECORD + 1)},
    "not JSON": {"header": "nonsense"},
    "a list": {"header": "[]"},
    "depth": {"header": '{"a": ' + DEEP + "}"},
    "no text": {"header": b"\xff\xff\xff\xff"},
    "a shape that overflows": {"header": {"a": entry(shape=(2**62, 2**62))}},
    "a shape of nothing": {"header": {"a": entry(shape=(0, 2**60), offsets=(0, 0))}},
    "a negative shape": {"header": {"a": entry(shape=(-1,))}},
    "one tensor over another": {"header": {"a": entry(), "b": entry()}, "data": bytes(4)},
    "a gap": {"header": {"a": entry(offsets=(4, 8))}, "data": bytes(8)},
    "more than the file": {"header": {"a": entry(shape=(100,), offsets=(0, 400))}},
    "4-bit numbers": {"header": {"a": entry("F4", (8,))}, "data": bytes(4)},
    "6-bit numbers": {"header": {"a": entry("F6_E2M3", (4,), (0, 3))}, "data": bytes(3)},
    "exponents": {"header": {"a": entry("F8_E8M0", (4,))}, "data": bytes(4)},
    "complex numbers": {"header": {"a": entry("C64", offsets=(0, 8))}, "data": bytes(8)},
    "an unknown type": {"header": {"a": entry("F0")}, "data": bytes(4)},
    "a type in a list": {"header": {"a": entry(["F32"])}, "data": bytes(4)},
    "a tensor that is a number": {"header": {"a": 3}},
}


@pytest.mark.parametrize("lie", HEADERS)
def test_a_file_that_lies_is_refused(tmp_path, lie):
    header = HEADERS[lie]["header"]
    text = json.dumps(header) if isinstance(header, dict) else header
    raw_safetensors(weights(model_folder(tmp_path)), **HEADERS[lie] | {"header": text})
    with pytest.raises(BadInput) as error:
        load_decoder(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 1000
    # An empty tensor is no lie, but no model either.
    assert ("model.safetensors" in str(error.value)) == (lie != "a shape of nothing")


@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    NO_FILES[kind](tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="not a regular file"):
        read_tensors(tmp_path / "x.safetensors")


def with_norm(folder, norm):
    """Return a model's folder whose last norm is this tensor."""
    path = weights(model_folder(folder))
    save_file(load_file(path) | {"norm.weight": norm}, path)
    return folder


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.uint8])
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, kind):
    with pytest.raises(BadInput, match=r"norm\.weight is not an array of real numbers"):
        load_decoder(with_norm(tmp_path, torch.ones(32).to(kind)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_end_generation(tmp_path, bad):
    folder = with_norm(tmp_path, torch.full((32,), bad))
    assert "predicts NaN or infinity" in refused("generate", folder, "--prompt", "Return")


def test_bf16_and_fp64_weights_are_read(tmp_path):
    folder = model_folder(tmp_path)
    for kind in (torch.bfloat16, torch.float64):
        state = {name: tensor.to(kind) for name, tensor in load_file(weights(folder)).items()}
        save_file(state, weights(folder))
        assert read_tensors(weights(folder))["norm.weight"].dtype == kind


def test_a_file_at_half_of_each_bound_is_read(tmp_path):
    path = tmp_path / "half.safetensors"
    empty = {str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(MOST_TENSORS // 2)}
    raw_safetensors(path, json.dumps(empty).ljust(LARGEST_RECORD // 2))
    assert len(read_tensors(path)) == MOST_TENSORS // 2
