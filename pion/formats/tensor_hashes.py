"""Hash each tensor of a file of weights, without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pion.formats.weights import LENGTH_BYTES, read_header
from pion.untrusted import open_file

# Bytes that are read at once.
_CHUNK = 1 << 24


def tensor_hashes(path: Path) -> dict[str, str]:
    """Return type, shape and hash of each tensor in a safetensors file.

    Raises OSError and BadInput as `read_header` does.
    """
    hashes = {}
    header = read_header(path)
    header.pop("__metadata__", None)
    for name, about in header.items():
        begin, end = about["data_offsets"]
        sha256 = hashlib.sha256()
        _add(sha256, path, begin, end - begin)
        hashes[name] = f"{about['dtype']} {about['shape']} {sha256.hexdigest()}"
    return hashes


def _add(sha256: hashlib._Hash, path: Path, begin: int, size: int) -> None:
    """Add `size` bytes of a file's tensors, which follow its header, from `begin` on."""
    with open_file(path) as file:
        file.seek(LENGTH_BYTES + int.from_bytes(file.read(LENGTH_BYTES), "little") + begin)
        while size and (data := file.read(min(_CHUNK, size))):
            sha256.update(data)
            size -= len(data)
