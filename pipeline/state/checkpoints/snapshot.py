"""Copies of training state in host memory, in the layout of the safetensors files.

The memory is an anonymous file (memfd). Another process can map it and write it to disk. This needs
no copy, no fork, and no space in /dev/shm, which is tiny in containers.
"""

import contextlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.train.side_copy import SideCopy
from pipeline.state.checkpoints.layout import MODEL, OPTIMIZER
from pipeline.state.checkpoints.memory_file import PageLocks
from pipeline.state.stores.local import explained

if TYPE_CHECKING:
    import torch

    from pion.train.optimizer.state_pieces import Piece
    from pipeline.state.checkpoints.other_ranks import OtherRanks

Tensors = Mapping[str, "torch.Tensor"]
# The place of a file's content in the memory: offset and size in bytes.
Extent = tuple[int, int]

_PAGE = 4096
# What safetensors calls torch's types.
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


class Snapshot:
    """Model and optimizer tensors as two safetensors images, with the JSON state.

    `reserve` or the first `take` allocates the memory. Each later `take` of the same names, shapes
    and dtypes reuses the memory, so a snapshot is one copy and memory does not grow. No `take` may
    begin before the memory of the previous one was read.

    Of several ranks, the `others` copy their pieces of the tensors into the same memory.
    """

    def __init__(self) -> None:
        self.others: OtherRanks | None = None
        self.fd = os.memfd_create("pion-snapshot")
        self.state: dict[str, Any] = {}
        self.extents: dict[str, Extent] = {}
        self._layout: object = None
        self._views: dict[str, torch.Tensor] = {}  # by name: weights and moments have other names
        self.places: dict[str, int] = {}  # the first byte of each tensor in the memory
        self._locks = PageLocks()
        self._copying = SideCopy()  # may still write into the memory

    def take(
        self,
        model: Tensors,
        optimizer: Tensors,
        state: Mapping[str, Any],
        side_copy: SideCopy | None = None,
        pieces: Sequence["Piece"] = (),
    ) -> None:
        """Begin to copy the tensors, by `side_copy` or at once, and copy the state.

        Tensors on the device `meta` have no values: this rank has `pieces` of them, and `others`
        have the rest. The memory has all tensors after `wait`. Raises `StoreError` like `reserve`.
        """
        self.reserve(model, optimizer, pieces)
        tensors = (*model.items(), *optimizer.items())
        pairs = [(self._views[name], tensor) for name, tensor in tensors if not tensor.is_meta]
        pairs += [(piece.within(self._views[piece.name]), piece.values) for piece in pieces]
        if self.others is not None:
            self.others.begin(self.fd, self.places)
        self._copying = side_copy or SideCopy()
        self._copying.begin(pairs)
        self.state = json.loads(json.dumps(state))

    def wait(self) -> None:
        """Block until the memory has all tensors of the last `take`.

        Raises RuntimeError if the card failed first, or another rank.
        """
        self._copying.wait()
        if self.others is not None:
            self.others.wait(self._views)

    def reserve(self, model: Tensors, optimizer: Tensors, pieces: Sequence["Piece"] = ()) -> None:
        """Allocate memory for tensors of these shapes, of which this rank may only have `pieces`.

        Raises `StoreError` if the machine does not have enough memory.
        """
        weights = [*model.values(), *(piece.values for piece in pieces)]
        images = {MODEL: _ordered(model), OPTIMIZER: _ordered(optimizer)}
        layout = [[(n, t.dtype, t.shape) for n, t in image.items()] for image in images.values()]
        if layout != self._layout:
            self._allocate(images, pinned=any(tensor.is_cuda for tensor in weights))
            self._layout = layout

    def close(self) -> None:
        """Free the memory, after the last copy into it."""
        with contextlib.suppress(RuntimeError):  # a card that failed copies no more
            self.wait()
        self._locks.unlock()
        self._views = {}
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _allocate(self, images: Mapping[str, Tensors], *, pinned: bool) -> None:
        import torch

        headers = {name: _header(image) for name, image in images.items()}
        self.wait()
        self._locks.unlock()
        self._views, self.places, self.extents = {}, {}, {}  # free the old memory first
        extents: dict[str, Extent] = {}
        offset = 0
        for name, (header, size) in headers.items():
            extents[name] = (offset, len(header) + size)
            offset += -(-(len(header) + size) // _PAGE) * _PAGE
        os.ftruncate(self.fd, 0)
        # Reserve the pages now: too little memory is then an error here, not a SIGBUS later.
        with explained("reserve", Path(f"{offset / 1e9:.1f} GB of memory to save from")):
            os.posix_fallocate(self.fd, 0, offset)
        memory = mmap.mmap(self.fd, offset)
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        if pinned:
            self._locks.lock([(buffer.data_ptr(), buffer.numel())])
        for name, image in images.items():
            header, _ = headers[name]
            start = extents[name][0]
            memory[start : start + len(header)] = header
            begin = start + len(header)
            for key, tensor in image.items():
                end = begin + tensor.numel() * tensor.element_size()
                self._views[key] = buffer[begin:end].view(tensor.dtype).view(tensor.shape)
                self.places[key] = begin
                begin = end
        self.extents = extents


def map_extents(fd: int, extents: Mapping[str, Extent]) -> dict[str, memoryview]:
    """Return the contents of the memory behind `fd`, mapped and not copied."""
    memory = memoryview(mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ))
    return {name: memory[offset : offset + size] for name, (offset, size) in extents.items()}


def _ordered(tensors: Tensors) -> dict[str, "torch.Tensor"]:
    """Sort by decreasing element size, so that every tensor is aligned, and then by name, so that
    equal tensors give equal bytes."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _header(tensors: Tensors) -> tuple[bytes, int]:
    """Return the header of a safetensors file (names, dtypes, shapes and offsets) and the number of
    bytes after it."""
    header: dict[str, Mapping[str, Any]] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end
