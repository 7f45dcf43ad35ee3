"""Copies of training state in host memory, laid out as the safetensors files they will become.

The memory is an anonymous file (memfd). Another process can map it to write it out: that needs no
copy, no fork, and none of /dev/shm, which is tiny in containers.
"""

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.state.checkpoints.layout import MODEL, OPTIMIZER
from pipeline.state.stores.local import explained

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
# Where a file's content lies in the memory: offset and size in bytes.
Extent = tuple[int, int]

_PAGE = 4096


class Snapshot:
    """Model and optimizer tensors as two safetensors images, and the JSON state that belongs to
    them.

    `reserve`, or else the first `take`, allocates the memory. Each later `take` of the same names,
    shapes and dtypes reuses it, so a snapshot is one copy and memory stays flat.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("pion-snapshot")
        self.state: dict[str, Any] = {}
        self.extents: dict[str, Extent] = {}
        self._layout: object = None
        self._views: list[torch.Tensor] = []
        self._pinned: int | None = None  # address of page-locked memory

    def take(self, model: Tensors, optimizer: Tensors, state: Mapping[str, Any]) -> None:
        """Copy everything. When this returns, the tensors may change again."""
        import torch

        tensors = self.reserve(model, optimizer)
        for view, tensor in zip(self._views, tensors, strict=True):
            view.copy_(tensor.detach(), non_blocking=True)
        self.state = json.loads(json.dumps(state))
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.synchronize()

    def reserve(self, model: Tensors, optimizer: Tensors) -> list["torch.Tensor"]:
        """Allocate memory for tensors like these, and return them in their order in memory.

        Raises `StoreError` if the machine does not have that much.
        """
        images = {MODEL: _ordered(model), OPTIMIZER: _ordered(optimizer)}
        tensors = [tensor for image in images.values() for tensor in image.values()]
        layout = [[(n, t.dtype, t.shape) for n, t in image.items()] for image in images.values()]
        if layout != self._layout:
            self._allocate(images, pinned=any(tensor.is_cuda for tensor in tensors))
            self._layout = layout
        return tensors

    def content(self, name: str) -> memoryview:
        """Return the bytes of one of the two files, valid until the next `take`."""
        return map_extents(self.fd, self.extents)[name]

    def close(self) -> None:
        """Free the memory."""
        self._unpin()
        self._views = []
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _allocate(self, images: Mapping[str, Tensors], *, pinned: bool) -> None:
        import torch

        headers = {name: _header(image) for name, image in images.items()}
        self._unpin()
        self._views, self.extents = [], {}  # let the old memory go first
        offset = 0
        for name, (header, size) in headers.items():
            self.extents[name] = (offset, len(header) + size)
            offset += -(-(len(header) + size) // _PAGE) * _PAGE
        os.ftruncate(self.fd, 0)
        # Reserved now: a machine without that much memory says so here, not by a SIGBUS later.
        with explained("reserve", Path(f"{offset / 1e9:.1f} GB of memory to save from")):
            os.posix_fallocate(self.fd, 0, offset)
        memory = mmap.mmap(self.fd, offset)
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        if pinned:
            self._pin(buffer)
        for name, image in images.items():
            header, _ = headers[name]
            start = self.extents[name][0]
            memory[start : start + len(header)] = header
            begin = start + len(header)
            for tensor in image.values():
                end = begin + tensor.numel() * tensor.element_size()
                self._views.append(buffer[begin:end].view(tensor.dtype).view(tensor.shape))
                begin = end

    def _pin(self, buffer: "torch.Tensor") -> None:
        """Lock the memory's pages: a GPU copies straight into such memory, several times as fast.

        If that is refused (there is a limit on locked memory), copies are only slower.
        """
        import torch

        if int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)) == 0:
            self._pinned = buffer.data_ptr()

    def _unpin(self) -> None:
        """Unlock the pages before the memory goes: CUDA would mistake whatever comes to its address
        for it."""
        import torch

        if self._pinned is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)
            self._pinned = None


def map_extents(fd: int, extents: Mapping[str, Extent]) -> dict[str, memoryview]:
    """Return the contents in the memory behind `fd`, mapped, not copied."""
    memory = memoryview(mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ))
    return {name: memory[offset : offset + size] for name, (offset, size) in extents.items()}


def _ordered(tensors: Tensors) -> dict[str, "torch.Tensor"]:
    """Sort by falling element size, which keeps every tensor aligned, and then by name: equal
    tensors give equal bytes."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _header(tensors: Tensors) -> tuple[bytes, int]:
    """Return the header of a safetensors file (only names, dtypes, shapes and offsets) and how many
    bytes follow it."""
    names = _dtype_names()
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _dtype_names() -> dict["torch.dtype", str]:
    import torch

    return {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
