"""Hash each tensor of a checkpoint's weights, without torch.

So weights are compared that one rank or several ranks have saved: their files differ.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pion.formats.parts import (
    MODEL,
    Elements,
    elements_by_file,
    saved_files,
    sources,
    whole_name,
)
from pion.formats.weights import LENGTH_BYTES, read_header
from pion.untrusted import open_file

# Bytes that are read at once.
_CHUNK = 1 << 24


def tensor_hashes(folder: Path) -> dict[str, str]:
    """Return type, shape and hash of each tensor in a folder's weights.

    Raises FileNotFoundError and BadInput as `read_saved` does.
    """
    files = saved_files(folder, MODEL)
    headers = {file: read_header(folder / file) for file in files}
    if files == [whole_name(MODEL)]:
        elements = {files[0]: _all(headers[files[0]])}
    else:
        elements = elements_by_file(folder, files)
    hashes = {}
    for name, found in sources(folder, elements).items():
        having = next(file for file in files if name in elements[file])
        sha256 = hashlib.sha256()
        for source in found:
            begin, end = headers[source.file][name]["data_offsets"]
            width = (end - begin) // elements[source.file][name].count
            size = (source.of[1] - source.of[0]) * width
            _add(sha256, folder / source.file, begin + source.offset * width, size)
        shape = list(elements[having][name].shape)
        hashes[name] = f"{headers[having][name]['dtype']} {shape} {sha256.hexdigest()}"
    return hashes


def _all(header: Mapping[str, Any]) -> dict[str, Elements]:
    shapes = {n: tuple(about["shape"]) for n, about in header.items() if n != "__metadata__"}
    return {
        name: Elements(shape, ((0, math.prod(shape)),) if math.prod(shape) else ())
        for name, shape in shapes.items()
    }


def _add(sha256: hashlib._Hash, path: Path, begin: int, size: int) -> None:
    """Add `size` bytes of a file's tensors, which follow its header, from `begin` on."""
    with open_file(path) as file:
        header = int.from_bytes(file.read(LENGTH_BYTES), "little")
        file.seek(LENGTH_BYTES + header + begin)
        while size and (data := file.read(min(_CHUNK, size))):
            sha256.update(data)
            size -= len(data)
