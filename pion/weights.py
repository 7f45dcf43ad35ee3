"""Read the tensors of a safetensors file that others may have written."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import LARGEST_RECORD, open_file, parse_object

# A file begins with the length of its header, in this many bytes.
_LENGTH_BYTES = 8
# The most tensors of a file. Qwen3's largest mixture of experts has 36,000.
MOST_TENSORS = 1 << 16
# The numbers that PyTorch can compute with. Others, such as F4, are packed.
DTYPES = frozenset(
    ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64")
)


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
