"""Read the weights of a model that others may have written, and write safetensors files.

transformers splits large models into shards. `model.safetensors.index.json` says which tensor is in
which shard. Files of pickles (`.bin`) are never read: they can run code. torch is imported only
where tensors are read or written, so that a model is found fast.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import LARGEST_RECORD, open_file, parse_object, read_file

if TYPE_CHECKING:
    from torch import Tensor

# A file begins with the length of its header, in this many bytes.
LENGTH_BYTES = 8
# The numbers that PyTorch can compute with. Others, such as F4, are packed.
DTYPES = frozenset(
    ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64")
)
# How the names of a model's legal files begin: its licence, and what this asks to pass on.
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What `publish.gguf` puts next to the weights of an export, for programs other than Pion.
GGUF_FILE, MODELFILE = "model-f16.gguf", "Modelfile"
# The most tensors of a file or a model. Qwen3's largest mixture of experts has 36,000.
MOST_TENSORS = 1 << 16
# The most shards of a model. Models of 2B parameters have one or two.
MOST_SHARDS = 256
# A file in the same folder: no path, no hidden file.
_SHARD = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}\.safetensors", re.ASCII)
# The bytes of tensors that are read at once.
_HASHED_AT_ONCE = 1 << 24
_PICKLES = ("pytorch_model*.bin", "*.bin.index.json")


def read_tensors(path: str | Path, absent: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names, on the CPU and mapped from the file.

    The library checks that the tensors cover the file exactly, without overlap. Raises BadInput
    that names the file if the file is damaged, or has a header or a number of tensors beyond any
    model's, or tensors that are not arrays of real numbers. If there is no file, raises BadInput
    with the message `absent`, or FileNotFoundError without such a message.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read_header(Path(path))
        return load_file(path)
    except FileNotFoundError:
        if absent is None:
            raise
        raise BadInput(absent) from None
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is damaged or can't be read ({error})") from None


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file. Raises BadInput as `read_tensors` does, and OSError
    if the file can't be read."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > min(LARGEST_RECORD, size - LENGTH_BYTES):
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
    return header


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object in a file that makes its folder `what`, such as "a model".

    Raises BadInput that names the file if it is missing or damaged.
    """
    try:
        return parse_object(read_file(path), str(path))
    except FileNotFoundError:
        raise BadInput(f"{path.parent} is not {what}: it has no {path.name}") from None
    except OSError as error:
        raise BadInput(f"{path} can't be read ({error.strerror or error})") from None


def is_legal(name: str) -> bool:
    """Return whether a file of this name says under which terms a model may be used."""
    return name.upper().startswith(LEGAL)


def shards_of(index: Path) -> Mapping[str, str]:
    """Return the shard of each tensor by the tensor's name. Raises BadInput for a bad index."""
    shard_of: Any = read_settings(index, "a model").get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise BadInput(f"{index}: weight_map is {shown(shard_of)}; it must name each tensor's file")
    if len(shard_of) > MOST_TENSORS:
        raise BadInput(f"{index} has {len(shard_of):,} tensors; at most {MOST_TENSORS:,} are read")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise BadInput(
                f"{index}: the file of {shown(name)} is {shown(shard)}; it must be the name of a "
                ".safetensors file in this folder"
            )
    shards = len(set(shard_of.values()))
    if shards > MOST_SHARDS:
        raise BadInput(f"{index} names {shards:,} files; at most {MOST_SHARDS} are read")
    return shard_of


def no_weights(folder: Path) -> BadInput:
    """Return the error for a folder without safetensors."""
    if any(path.is_file() for pattern in _PICKLES for path in folder.glob(pattern)):
        # transformers writes safetensors next to the pickles.
        code = (
            "from transformers import AutoModelForCausalLM as M; "
            f"M.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained({str(folder)!r})"
        )
        return BadInput(
            f"{folder} has its weights in pickles (.bin), which can run code, so they were not "
            f"read. If you trust the folder, convert them: python -c {shlex.quote(code)}"
        )
    return BadInput(f"{folder} is not a model: it has no {WEIGHTS} and no {INDEX}")


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` to `path`. Raises OSError if the file can't be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    stored = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(stored, path, metadata=None if metadata is None else dict(metadata))
        path.chmod(mode)  # safetensors makes files for this user alone, whatever the umask
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def tensor_hashes(path: Path) -> dict[str, str]:
    """Return type, shape and hash of each tensor in a safetensors file.

    Raises OSError and BadInput as `read_header` does.
    """
    hashes, header = {}, read_header(path)
    header.pop("__metadata__", None)
    with open_file(path) as file:
        start = LENGTH_BYTES + int.from_bytes(file.read(LENGTH_BYTES), "little")
        for name, about in header.items():
            (begin, end), sha256 = about["data_offsets"], hashlib.sha256()
            file.seek(start + begin)
            for at in range(begin, end, _HASHED_AT_ONCE):
                sha256.update(file.read(min(_HASHED_AT_ONCE, end - at)))
            hashes[name] = f"{about['dtype']} {about['shape']} {sha256.hexdigest()}"
    return hashes
