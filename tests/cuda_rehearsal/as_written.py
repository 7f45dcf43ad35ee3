"""Run inductor's code on the pretended card: it takes and frees memory as on a real one.

The code of a graph makes each buffer, calls kernels, and frees or reuses buffers. Here the kernels
of Triton do nothing, and those of libraries run on fake tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import async_compile


class _Kernel:
    """A kernel of Triton that is not there."""

    def run(self, *arguments: Any, **options: Any) -> None:
        pass


class _NothingCompiled:
    """Stands for what compiles a module's kernels."""

    def triton(self, *source: Any, **options: Any) -> _Kernel:
        return _Kernel()

    def wait(self, names: Any) -> None:
        pass


def _empty(size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


def _part(tensor: Tensor, size: Any, stride: Any, further: int) -> Tensor:
    return tensor.as_strided(size, stride, tensor.storage_offset() + further)


def _nothing(*arguments: Any) -> None:
    pass


# What the code takes from torch's C++ that would ask the driver, or reads the addresses of tensors.
_REPLACED: dict[str, Any] = {
    "empty_strided_cuda": _empty,
    "reinterpret_tensor": _part,
    "copy_if_misaligned": lambda tensor: tensor,
    "assert_alignment": _nothing,
    "get_raw_stream": lambda device: 0,
}


def runner(source: str, constants: Mapping[str, Any]) -> Callable[[list[Any]], Any]:
    """Return the function that the code of a graph defines, which empties its list of inputs."""
    names: dict[str, Any] = {"__name__": "graph"}
    with mock.patch.object(async_compile, "AsyncCompile", _NothingCompiled):
        exec(source, names)  # torch's own output, as torch would import it
    names |= _REPLACED | dict(constants)
    call: Callable[[list[Any]], Any] = names["call"]
    return call
