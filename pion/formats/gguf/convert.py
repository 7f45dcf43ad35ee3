"""Write the GGUF file of an exported model, and read it back before it takes its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
)
from gguf.quants import dequantize, quantize

from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput, PionError
from pion.formats.gguf.tensors import ROUTER, Tensor, require_expressible, settings, tensors
from pion.formats.gguf.vocabulary import OF_NFC, require_known, sampling, vocabulary
from pion.formats.huggingface.architectures import config_from_transformers
from pion.formats.weights import read_settings

# The first bytes of a GGUF file.
MAGIC = b"GGUF"
_VALUE_TYPES = {
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    str: GGUFValueType.STRING,
}
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


@dataclass(frozen=True)
class Converted:
    """A GGUF file that was written and read back.

    Attributes:
        architecture: what llama.cpp calls the model's architecture.
        tensors: how many tensors the file has.
        size: its bytes.
        kept_f16: matrices of a q8_0 file that stayed f16, because their rows are no multiple of 32.
        caveat: for which texts llama.cpp may give other ids; mostly empty.
    """

    architecture: str
    tensors: int
    size: int
    kept_f16: tuple[str, ...]
    caveat: str


def convert(folder: str | Path, out: str | Path, kind: Type, *, name: str) -> Converted:
    """Write the model in `folder`, which `export_model` wrote, as the GGUF file `out`.

    `name` is what programs call the model. The file appears whole or not at all, and replaces an
    earlier GGUF file.

    Raises:
        BadInput: GGUF can't express the model or its tokenizer, or `out` is another file or can't
            be written.
        PionError: read back, the file does not have the values of the folder.
    """
    folder, out = Path(folder), Path(out)
    check_file(out)
    hf_config = read_settings(folder / "config.json", "a model")
    config = config_from_transformers(hf_config)
    architecture = require_expressible(config, hf_config["model_type"])
    entries = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(_FILE_TYPES[kind]),
        "general.quantization_version": GGML_QUANT_VERSION,
        **sampling(folder),
        **settings(config, architecture),
        **vocabulary(folder, config.vocab_size),
    }
    planned: list[tuple[Tensor, Type]] = [
        # A router stays f32: rounding would change the chosen experts.
        (tensor, "f32" if f".{ROUTER}." in tensor.name else stored_type(tensor.shape, kind))
        for tensor in tensors(folder / "model.safetensors", config, architecture)
    ]
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, architecture.name, entries, planned)
        _compare(partial, entries, planned)
        partial.replace(out)
    except OSError as error:
        raise BadInput(
            f"{out}: can't write the GGUF file ({error.strerror or error}). The model is safe, and "
            "no part of the file is left. Free some space, or name a different file. Then run the "
            "same command again."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    in_f16 = [tensor.name for tensor, stored in planned if kind == "q8_0" and stored == "f16"]
    normalized = Tokenizer.from_file(folder / "tokenizer.json").normalization is not None
    caveat = OF_NFC if normalized else ""
    return Converted(architecture.name, len(planned), out.stat().st_size, tuple(in_f16), caveat)


def require_convertible(
    config: ModelConfig, tokenizer_json: Path, model_type: str | None = None
) -> None:
    """Raise BadInput if GGUF can't express a model of these settings with this tokenizer.

    `model_type` is for `architecture_of`.
    """
    require_expressible(config, model_type)
    require_known(tokenizer_json)


def check_file(out: str | Path) -> None:
    """Raise BadInput unless `out` is absent or a GGUF file, which is replaced."""
    out = Path(out)
    if not out.exists():
        return
    if not out.is_file():
        raise BadInput(f"{out} is no file. Nothing was changed. Name a different file.")
    with out.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BadInput(
                f"{out} is a file, but not a GGUF file. Nothing was changed. Name a different "
                "file, or move this file away."
            )


def _write(
    path: Path,
    architecture: str,
    entries: Mapping[str, Any],
    planned: Sequence[tuple[Tensor, Type]],
) -> None:
    """Write the file, holding one tensor in memory at a time. Raises OSError."""
    writer = GGUFWriter(path, architecture)
    try:
        for key, value in entries.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            else:
                writer.add_key_value(key, value, _VALUE_TYPES[type(value)])
        for tensor, kind in planned:
            writer.add_tensor_info(
                tensor.name,
                tensor.shape,
                np.dtype(np.float32),
                stored_bytes(tensor.shape, kind),
                _STORED[kind],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in planned:
            writer.write_tensor_data(encoded(tensor.read(), kind))
    finally:
        writer.close()


def _compare(
    path: Path, entries: Mapping[str, Any], planned: Sequence[tuple[Tensor, Type]]
) -> None:
    """Raise PionError unless the file at `path` has these entries and tensors."""
    reader = GGUFReader(path)
    read = {key: reader.fields[key].contents() for key in entries if key in reader.fields}
    for key, value in entries.items():
        expected = float(np.float32(value)) if isinstance(value, float) else value
        if read.get(key) != expected:
            raise _differs(path, f"its entry {key} is not what was written")
    if [tensor.name for tensor in reader.tensors] != [tensor.name for tensor, _ in planned]:
        raise _differs(path, "it has other tensors than the model")
    for (tensor, kind), stored in zip(planned, reader.tensors, strict=True):
        described = (stored.tensor_type, tuple(reversed(stored.shape.tolist())))
        if described != (_STORED[kind], tensor.shape):
            raise _differs(path, f"its tensor {tensor.name} has another type or shape")
        apart = worst(tensor.read(), stored.data, kind)
        if not apart <= 1:  # not `>`: a NaN must not pass
            raise _differs(
                path,
                f"its tensor {tensor.name} is {apart:.3g} times as far from the model's as "
                f"rounding to {kind} allows. With --type f32 nothing is rounded",
            )


def _differs(path: Path, what: str) -> PionError:
    return PionError(
        f"the GGUF file was written to {path} and read back, and {what}. The file was deleted. The "
        "model is safe."
    )


def stored_type(shape: tuple[int, ...], kind: Type) -> Type:
    """Return as what a tensor of this shape is stored in a file of this type.

    Vectors stay f32, as llama.cpp expects. Rows that are no multiple of 32 can't be q8_0.
    """
    if len(shape) < 2:
        return "f32"
    return "f16" if kind == "q8_0" and shape[-1] % BLOCK else kind


def stored_bytes(shape: tuple[int, ...], kind: Type) -> int:
    """Return how many bytes a tensor of this shape takes."""
    weights, size = GGML_QUANT_SIZES[_STORED[kind]]
    return math.prod(shape) // weights * size


def encoded(values: np.ndarray, kind: Type) -> np.ndarray:
    """Return fp32 values as they are stored."""
    with np.errstate(over="ignore", invalid="ignore"):  # `worst` finds what this makes infinite
        return quantize(values, _STORED[kind])


def worst(values: np.ndarray, stored: np.ndarray, kind: Type) -> float:
    """Return how far stored values are from fp32 values, relative to what rounding allows.

    At most 1 is right; NaN is not. f32 must be exact.
    """
    dequantized = dequantize(stored, _STORED[kind]).reshape(values.shape)
    difference = np.abs(dequantized - values)
    if kind == "f32":
        return 0.0 if np.array_equal(dequantized, values) else float("inf")
    if kind == "f16":
        return float((difference / (np.abs(values) * 2.0**-11 + _F16_STEP / 2)).max(initial=0))
    largest = np.abs(values).reshape(-1, BLOCK).max(axis=1, keepdims=True)
    # Half a step of the scale, whose own rounding to f16 counts for 127 steps.
    allowed = largest / 127 * (0.5 + 127 * 2.0**-11) * 1.001 + 127 * _F16_STEP / 2
    return float((difference.reshape(-1, BLOCK) / allowed).max(initial=0))
