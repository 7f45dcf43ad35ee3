"""Watch every operation on the pretended card, and write down what would be wrong on a real one.

The kinds of findings:

  * `host_sync`: the program waits until the card has finished. The causes are `.item()`, a blocking
    copy, a result whose shape depends on values, an index on the host (torch copies it), a mask as
    an index (torch counts it), a grouped product for which torch has no kernel (torch reads where
    the groups end) and `torch.cuda.synchronize`. On a real card, `torch.cuda.set_sync_debug_mode`
    reports all but the last.
  * `unpinned_copy`: a copy to the card does not block, but its source is not page-locked memory.
    The program waits while the driver copies the source to page-locked memory, but it does not
    wait for the card. A copy from the card to such memory does wait for the card.
  * `wrong_device`: one operation gets tensors of the card and of the host.
  * `fp64`: an operation on the card reads or writes 64-bit floats, which are slow there.

No operation is computed on the card. After a finding the program continues, with ones in place of
what it waited for. So one run finds all of them. Pion's own operations are opened up, so that what
happens inside them is watched, too.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves

from tests.cuda_rehearsal.our_code import where
from tests.cuda_rehearsal.report import Finding, Kind

aten = torch.ops.aten

COPIES = {aten._to_copy, aten.copy_}
# The second argument of these has the indices, one for each dimension, None for all of it.
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
PRODUCTS = {
    aten.mm,
    aten.bmm,
    aten.addmm,
    aten.baddbmm,
    aten._grouped_mm,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
}
# The first argument of these is added to the product.
ADDING = {aten.addmm, aten.baddbmm}
DOUBLE = (torch.float64, torch.complex128)
DEVICE = torch.ops.prim.device.default
# The namespace of the operations that ranks do together.
COLLECTIVES = "c10d"


@dataclass(frozen=True)
class Call:
    """One operation with its arguments; `tensors` are those among the arguments."""

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]

    def run(self) -> Any:
        """Return the fake result."""
        return self.func(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Operation:
    """An operation that ran on the card: what torch was asked to do, and what it returned.

    `func` is an OpOverload, or flex attention.
    """

    func: Any
    args: tuple[Any, ...]
    result: Any


def ones(source: Tensor, dtype: torch.dtype) -> Tensor:
    """Return made-up values, on the host, for a copy of a tensor of the card."""
    return torch.ones(source.shape, dtype=dtype)


class Watch(TorchDispatchMode):
    """Sends operations on the card to fake tensors and all others to the CPU, and keeps findings.

    Enter it after a FakeTensorMode. `seen`, if set, is called with each operation on the card, and
    with each communication between ranks, on the host too.
    `values_of` makes up the values that the host copies from the card.
    While a CUDA graph `captures` what runs, waiting for the card raises RuntimeError, and so does a
    copy between host and card: each replay would read the host's memory again. `replays` counts the
    launches of graphs.
    """

    # Without this, torch refuses flex attention while the mode is on.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.findings: list[Finding] = []
        self.matmuls: Counter[str] = Counter()  # by the dtypes of their inputs
        self.seen: Callable[[Operation], None] | None = None
        self.values_of: Callable[[Tensor, torch.dtype], Tensor] = ones
        self.captures = False
        self.replays = 0
        # By address. The tensors are kept so that nothing else gets their address.
        self._page_locked: dict[int, Tensor] = {}
        self._registered: dict[int, int] = {}  # bytes by address

    def start(self) -> None:
        """Forget the findings, products and replays so far. What comes now counts."""
        self.findings, self.matmuls, self.replays = [], Counter(), 0

    def free_page_locked(self) -> None:
        """Free the memory from `page_locked`, once nothing uses it any more."""
        self._page_locked = {}

    def note(self, kind: Kind, operation: str) -> None:
        """Write down a finding in the line of our code that now runs."""
        if self.captures and kind in ("host_sync", "unpinned_copy"):
            raise RuntimeError(f"{operation}: operation not permitted when stream is capturing")
        self.findings.append(Finding(kind, operation, where()))

    def page_locked(self, tensor: Tensor) -> Tensor:
        """Return a copy that counts as page-locked. This replaces `Tensor.pin_memory`."""
        copy = tensor.clone()
        self._page_locked[copy.untyped_storage().data_ptr()] = copy
        return copy

    def register(self, address: int, size: int, flags: int) -> int:
        """Count the memory at `address` as page-locked. This replaces `cudaHostRegister`."""
        self._registered[address] = size
        return 0

    def unregister(self, address: int) -> int:
        """Count the memory as page-locked no more. This replaces `cudaHostUnregister`."""
        del self._registered[address]
        return 0

    def is_page_locked(self, tensor: Tensor) -> bool:
        """Return whether the tensor lies in memory from `page_locked`, or that is registered."""
        if tensor.untyped_storage().data_ptr() in self._page_locked:
            return True
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        return any(begin <= first and last <= begin + n for begin, n in self._registered.items())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # C++ asks fake tensors for their device more often than for anything else.
        if func is DEVICE:
            return args[0].device
        kwargs = kwargs or {}
        # Flex attention is not a plain operation, and fake tensors know its shapes.
        if not isinstance(func, OpOverload):
            result = func(*args, **kwargs)
            self._tell(func, args, result)
            return result
        leaves = arg_tree_leaves(*args, **kwargs)
        if not any(_is_on_card(leaf) for leaf in leaves):
            with unset_fake_temporarily():
                result = func(*args, **kwargs)
            if func.namespace == COLLECTIVES:
                self._tell(func, args, result)
            return result
        if func.namespace.startswith("pion"):
            with self:
                result = OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
            self._tell(func, args, result)
            return result
        if func.namespace == "aten" and _consists_of_others(func):
            # Only in inference mode do we get operations that consist of others. In all other modes
            # torch has taken them apart before. We do so here, so that both modes look the same.
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        result = self._on_card(Call(func, args, kwargs, tensors))
        self._tell(func, args, result)
        return result

    def _tell(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        if self.seen is not None:
            self.seen(Operation(func, args, result))

    def _on_card(self, call: Call) -> Any:
        """Write down what is wrong with the operation, and return its fake result."""
        packet = call.func.overloadpacket
        if packet in COPIES:
            result = self._copy(call)
        elif packet in INDEXED:
            result = self._index(call)
        elif _depends_on_values(call):
            self.note("host_sync", str(call.func))
            result = _made_up(call)
        else:
            if _mixes_devices(call.func, call.tensors):
                self.note("wrong_device", str(call.func))
            if packet is aten._grouped_mm and not _has_kernel_for_groups(call):
                self.note("host_sync", f"{call.func} without a kernel")
            result = call.run()
        if packet in PRODUCTS:
            added = int(packet in ADDING)
            factors = call.tensors[added : added + 2]
            self.matmuls.update({str(tensor.dtype) for tensor in factors})
        results = result if isinstance(result, list | tuple) else [result]
        if any(_is_double_on_card(tensor) for tensor in [*call.tensors, *results]):
            self.note("fp64", str(call.func))
        return result

    def _copy(self, call: Call) -> Any:
        args, kwargs = call.args, call.kwargs
        in_place = call.func.overloadpacket is aten.copy_
        source = args[1] if in_place else args[0]
        device = args[0].device if in_place else kwargs.get("device") or source.device
        if device.type == source.device.type:
            return call.run()
        if not (kwargs.get("non_blocking") or (in_place and len(args) > 2 and args[2])):
            self.note("host_sync", str(call.func))
        elif device.type == "cuda" and not self.is_page_locked(source):
            self.note("unpinned_copy", str(call.func))
        elif in_place and device.type == "cpu" and not self.is_page_locked(args[0]):
            self.note("host_sync", f"{call.func} to memory that is not page-locked")
        if device.type == "cuda":
            return call.run()
        if in_place:
            return args[0]
        with unset_fake_temporarily():
            return self.values_of(source, kwargs.get("dtype") or source.dtype)

    def _index(self, call: Call) -> Any:
        """Index by numbers on the card, after noting indices that are masks or on the host."""
        target, given, *values = call.args
        if target.device.type != "cuda":  # torch refuses an index on the card here
            self.note("wrong_device", str(call.func))
            return call.run()
        indices: list[Tensor | None] = []
        for index in given:
            if index is None:
                indices.append(None)
                continue
            is_mask = index.dtype in (torch.bool, torch.uint8)
            if is_mask or index.device.type != "cuda":
                what = "a mask" if is_mask else "an index on the host"
                self.note("host_sync", f"{call.func} by {what}")
            if is_mask:  # as if the mask were true everywhere
                rows = torch.zeros(index.numel(), dtype=torch.int64, device=target.device)
                indices.extend([rows] * index.ndim)
            else:
                indices.append(index.to(target.device))
        if _mixes_devices(call.func, [target, *values[:1]]):
            self.note("wrong_device", str(call.func))
        return call.func(target, indices, *values, **call.kwargs)


@functools.cache
def _consists_of_others(func: OpOverload) -> bool:
    """Return whether an operation is made of others on a card, and has no kernel of its own."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CUDA")
    return not has_kernel and func._can_decompose()


def _is_on_card(leaf: Any) -> bool:
    return isinstance(leaf, FakeTensor) or (isinstance(leaf, torch.device) and leaf.type == "cuda")


def _is_double_on_card(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in DOUBLE and value.device.type == "cuda"


def _mixes_devices(func: OpOverload, tensors: Sequence[Tensor]) -> bool:
    """Return whether tensors of host and card meet in the operation.

    A scalar on the host may meet tensors of the card: its value travels with the kernel. This does
    not hold for the lists of tensors that fused and multi-tensor operations take.
    """
    on_host = [tensor for tensor in tensors if tensor.device.type != "cuda"]
    if not on_host or len(on_host) == len(tensors):
        return False
    lists = func.overloadpacket.__name__.startswith(("_foreach_", "_fused_"))
    return lists or any(tensor.ndim > 0 for tensor in on_host)


def _depends_on_values(call: Call) -> bool:
    """Return whether torch has to read the card's memory to know the result or its shape."""
    if call.func.overloadpacket is aten.repeat_interleave and call.kwargs.get("output_size"):
        return False
    tags = call.func.tags
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def _has_kernel_for_groups(call: Call) -> bool:
    """Return whether torch has a kernel for a grouped product on this card and in this dtype.

    Otherwise torch copies the ends of the groups to the host, inside the operation.
    """
    in_bf16 = all(tensor.dtype == torch.bfloat16 for tensor in call.tensors[:2])
    return in_bf16 and _card_has_grouped_kernels()(True, True)


@functools.cache
def _card_has_grouped_kernels() -> Callable[[bool, bool], bool]:
    """Return the C++ function that torch itself asks. The shim answers what it asks the driver."""
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cuda.so"))
    # at::native::scaled::scaled_mm_arch_allowed(bool sm90_only, bool sm100_only)
    function = library["_ZN2at6native6scaled22scaled_mm_arch_allowedEbb"]
    function.argtypes, function.restype = [ctypes.c_bool, ctypes.c_bool], ctypes.c_bool
    return function


def _made_up(call: Call) -> Any:
    """Return a possible result of an operation that depends on values.

    A number is one and a flag is true. `nonzero` and `masked_select` take every element. Raises
    what fake tensors raise for other operations.
    """
    packet, source = call.func.overloadpacket, call.tensors[0]
    if packet is aten._local_scalar_dense:
        if source.dtype == torch.bool:
            return True
        return 1.0 if source.dtype.is_floating_point else 1
    if packet is aten.equal:
        return True
    if packet is aten.nonzero:
        shape = (source.numel(), source.ndim)
        return torch.zeros(shape, dtype=torch.int64, device=source.device)
    if packet is aten.masked_select:
        return source.new_zeros(source.numel())
    return call.run()
