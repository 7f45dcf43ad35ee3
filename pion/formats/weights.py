"""Read the tensors of a model that others may have written, from safetensors files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pion.errors import BadInput
from pion.formats.model_files import INDEX, MOST_TENSORS, WEIGHTS, no_weights, shards_of
from pion.later_fields import shown
from pion.untrusted import LARGEST_RECORD, open_file, parse_object

# A file begins with the length of its header, in this many bytes.
_LENGTH_BYTES = 8
# The numbers that PyTorch can compute with. Others, such as F4, are packed.
DTYPES = frozenset(
    ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64")
)


def read_model_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a model's folder by their names, on the CPU, mapped from its files.

    If one file has all tensors, an index is not read, as in transformers. Raises BadInput that
    names the file for a missing or damaged file and for an index that no model has, and BadInput
    for a folder with pickles only.
    """
    try:
        return read_tensors(folder / WEIGHTS)
    except FileNotFoundError:
        pass
    if not (folder / INDEX).is_file():
        raise no_weights(folder)
    names_in: dict[str, list[str]] = {}
    for name, shard in shards_of(folder / INDEX).items():
        names_in.setdefault(shard, []).append(name)
    return {
        name: tensor
        for shard, names in sorted(names_in.items())
        for name, tensor in _read_shard(folder, shard, names).items()
    }


def _read_shard(folder: Path, shard: str, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors that the index expects in a shard."""
    try:
        found = read_tensors(folder / shard)
    except FileNotFoundError:
        raise BadInput(
            f"{folder}: {shard} is missing, but {INDEX} names it. Download the model again"
        ) from None
    for name in names:
        if name not in found:
            raise BadInput(
                f"{folder}: {shard} has no tensor {shown(name)}, but {INDEX} expects it there. The "
                "files are of different models: download the model again"
            )
    return {name: found[name] for name in names}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names, on the CPU and mapped from the file.

    The library checks that the tensors cover the file exactly, without overlap. Raises BadInput
    that names the file if the file is damaged, or has a header or a number of tensors beyond any
    model's, or tensors that are not arrays of real numbers. Raises FileNotFoundError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        _check_header(Path(path))
        return load_file(path)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is damaged or can't be read ({error})") from None


def _check_header(path: Path) -> None:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(LARGEST_RECORD, size - _LENGTH_BYTES):
            raise BadInput(
                f"{path} is damaged: its header claims {length:,} bytes, but the file has "
                f"{size:,}, and a header may have at most {LARGEST_RECORD:,}"
            )
        header = parse_object(file.read(length), f"{path} is damaged: its header")
    if len(header) > MOST_TENSORS:
        raise BadInput(f"{path} has {len(header):,} tensors; at most {MOST_TENSORS:,} are read")
    for name, entry in header.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if name != "__metadata__" and str(dtype) not in DTYPES:
            raise BadInput(f"{path}: {shown(name)} has the type {shown(dtype)}, not real numbers")
