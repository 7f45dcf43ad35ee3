"""Copies of training state in host memory, laid out as the safetensors files they will become."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


class Snapshot:
    """Model and optimizer tensors as two safetensors images, and the JSON state beside them.

    The buffers are allocated by the first `take` and used again by each later one of the same
    names, shapes and dtypes, so that taking a snapshot is one copy and memory stays flat.
    """

    def __init__(self) -> None:
        self._model = _Image()
        self._optimizer = _Image()
        self.state: dict[str, Any] = {}

    @property
    def model(self) -> memoryview:
        """Content of `model.safetensors`, valid until the next `take`."""
        return self._model.bytes()

    @property
    def optimizer(self) -> memoryview:
        """Content of `optimizer.safetensors`, valid until the next `take`."""
        return self._optimizer.bytes()

    def take(self, model: Tensors, optimizer: Tensors, state: Mapping[str, Any]) -> None:
        """Copy everything; when this returns the tensors may change again."""
        import torch

        self._model.fill(model)
        self._optimizer.fill(optimizer)
        self.state = json.loads(json.dumps(state))
        if any(tensor.is_cuda for tensor in (*model.values(), *optimizer.values())):
            torch.cuda.synchronize()


class _Image:
    """One safetensors file in memory: 8 bytes of header size, the JSON header, the tensors.

    Equal tensors give equal bytes: the header holds nothing but names, dtypes, shapes and offsets,
    ordered by falling element size, which keeps every tensor aligned, and then by name.
    """

    def __init__(self) -> None:
        self._layout: list[tuple[str, Any, Any, bool]] | None = None
        self._buffer: torch.Tensor | None = None
        self._views: dict[str, torch.Tensor] = {}

    def fill(self, tensors: Tensors) -> None:
        ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
        layout = [(name, t.dtype, t.shape, t.is_cuda) for name, t in ordered]
        if layout != self._layout:
            self._allocate(dict(ordered))
            self._layout = layout
        for name, tensor in ordered:
            self._views[name].copy_(tensor.detach(), non_blocking=True)

    def bytes(self) -> memoryview:
        assert self._buffer is not None, "no snapshot was taken yet"
        return self._buffer.numpy().data

    def _allocate(self, tensors: dict[str, "torch.Tensor"]) -> None:
        import torch

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
        data_start = 8 + len(text)

        self._views = {}
        self._buffer = None  # let the old one go first
        pinned = any(tensor.is_cuda for tensor in tensors.values())
        buffer = torch.empty(data_start + end, dtype=torch.uint8, pin_memory=pinned)
        buffer.numpy().data[:data_start] = len(text).to_bytes(8, "little") + text
        for name, tensor in tensors.items():
            begin, end = (data_start + offset for offset in header[name]["data_offsets"])
            self._views[name] = buffer[begin:end].view(tensor.dtype).view(tensor.shape)
        self._buffer = buffer


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
