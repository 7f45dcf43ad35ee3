"""How a GGUF file stores numbers: f32, f16, or q8_0 (blocks of 32 bytes with a scale each)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import dequantize, quantize

Type = Literal["f32", "f16", "q8_0"]
TYPES: tuple[Type, ...] = get_args(Type)
# The weights of a block, which share a scale.
BLOCK = 32

_STORED = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
# The smallest step of f16: half of it is what a number near 0 can be off.
_F16_STEP = 2.0**-24


def file_type(kind: Type) -> int:
    """Return the `general.file_type` of a file with matrices of this type."""
    return int(_FILE_TYPES[kind])


def stored_type(shape: tuple[int, ...], kind: Type) -> Type:
    """Return as what a tensor of this shape is stored in a file of this type.

    Vectors stay f32, as llama.cpp expects. Rows that are no multiple of 32 can't be q8_0.
    """
    if len(shape) < 2:
        return "f32"
    return "f16" if kind == "q8_0" and shape[-1] % BLOCK else kind


def ggml_type(kind: Type) -> GGMLQuantizationType:
    """Return what the gguf package calls a type."""
    return _STORED[kind]


def stored_bytes(shape: tuple[int, ...], kind: Type) -> int:
    """Return how many bytes a tensor of this shape takes."""
    weights, size = GGML_QUANT_SIZES[_STORED[kind]]
    return math.prod(shape) // weights * size


def encoded(values: np.ndarray, kind: Type) -> np.ndarray:
    """Return fp32 values as they are stored."""
    with np.errstate(over="ignore", invalid="ignore"):  # `worst` finds what this makes infinite
        return quantize(values, _STORED[kind])


def decoded(stored: np.ndarray, kind: Type) -> np.ndarray:
    """Return stored values in fp32."""
    return dequantize(stored, _STORED[kind])


def worst(values: np.ndarray, stored: np.ndarray, kind: Type) -> float:
    """Return how far stored values are from fp32 values, relative to what rounding allows.

    At most 1 is right; NaN is not. f32 must be exact.
    """
    found = decoded(stored, kind).reshape(values.shape)
    difference = np.abs(found - values)
    if kind == "f32":
        return 0.0 if np.array_equal(found, values) else float("inf")
    if kind == "f16":
        return float((difference / (np.abs(values) * 2.0**-11 + _F16_STEP / 2)).max(initial=0))
    largest = np.abs(values).reshape(-1, BLOCK).max(axis=1, keepdims=True)
    # Half a step of the scale, whose own rounding to f16 counts for 127 steps.
    allowed = largest / 127 * (0.5 + 127 * 2.0**-11) * 1.001 + 127 * _F16_STEP / 2
    return float((difference.reshape(-1, BLOCK) / allowed).max(initial=0))
