"""Count the operations of one training step on a pretended card: FLOPs, bytes and launches.

Nothing is computed and nothing is timed. An operation reads each input and writes each result once;
what a GPU keeps in its caches between two operations is not known here.

  * Products (matrix products and attention) have FLOPs by torch's own formulas. Attention counts
    only the keys that a token sees.
  * All other operations have bytes alone. If they are compiled, their bytes are those that the
    graph's kernels touch (tests/cuda_rehearsal/kernel_bytes.py) minus the bytes of its products.
    A kernel counts what it reads once, and the kernel of the loss does read each logit once
    (tests/cuda_rehearsal/test_roofline.py).
  * A launch is one operation or, in a compiled graph, one kernel. Operations on lists of tensors
    count once. Operations without a kernel, such as views, do not count.

The tokens of a layer with experts are spread evenly over the experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch._higher_order_ops.flex_attention import flex_attention, flex_attention_backward
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pion.config.model_config import ModelConfig
from pion.model.attention.masks import mean_keys
from pion.model.attention.rope import rotary_table
from pion.model.decoder import Decoder
from pion.model.params_and_flops import cost_of
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer
from tests.cuda_rehearsal.our_code import where
from tests.cuda_rehearsal.pretended_card import insert_card
from tests.cuda_rehearsal.scenarios import Zeros, refuse
from tests.cuda_rehearsal.watch import Operation, Watch

if TYPE_CHECKING:
    from tests.cuda_rehearsal.lowering import Graph, Lowered

aten = torch.ops.aten
Residual = Literal["float32", "bfloat16"]

# These make a tensor or name one, without a kernel.
NO_KERNEL = {
    "_unsafe_view",
    "alias",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
}
# These read as much of their first input as they write.
LOOKUPS = {"embedding", "gather", "index", "index_select"}
# These write without reading what was there.
OVERWRITING = {"copy_", "fill_", "zero_"}
# So do these overloads, whose results get the memory that they are written to.
OUT = {"out", "grad_input"}
# Which argument is the first factor. A row of a grouped product meets one matrix of the second.
PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten._grouped_mm: 0, aten.addmm: 1, aten.baddbmm: 1}
ATTENTION = {flex_attention, flex_attention_backward}
# Parts of a step by the file that starts their operations. The backward pass has no file.
PARTS = {
    "pion/model/chunks_of_logits.py": "loss",
    "pion/model/loss.py": "loss",
    "pion/train/optimizer/optimizer.py": "optimizer",
    "pion/train/optimizer/muon.py": "optimizer",
    "pion/train/trainer.py": "optimizer",  # it clips
}


@dataclass(frozen=True)
class Counted:
    """An operation, or all of a compiled graph but its products."""

    part: str
    name: str
    flops: float  # 0 if it is no product
    bytes: float
    fp32: bool  # whether a product multiplies fp32
    launches: int


@dataclass(frozen=True)
class Step:
    """A step to count: one micro-batch of `rows` × `seq_len` tokens and the update, in bf16."""

    config: ModelConfig
    rows: int
    seq_len: int
    card: str
    compiled: bool
    residual: Residual = "float32"


def count_step(watch: Watch, step: Step) -> list[Counted]:
    """Return what a training step does on its pretended card, after a first step."""
    insert_card(step.card)
    rotary_table.cache_clear()
    settings = TrainSettings(steps=10, global_batch=step.rows, lr=1e-3)
    plan = ComputePlan("cuda", "bfloat16", step.rows, compile=step.compiled, residual=step.residual)
    # Flex attention is compiled in an eager step, too.
    from tests.cuda_rehearsal.lowering import lowering  # imports much of inductor

    with lowering() as lowered:
        rows: Any = Zeros(step.seq_len)
        trainer = Trainer(Decoder(step.config), rows, settings, plan)
        trainer.on_step_down = refuse
        with contextlib.closing(trainer):
            watch.values_of = even_ends(step)
            trainer.train_step()
            counter = Counter(step, lowered)
            watch.seen = counter.see
            try:
                trainer.train_step()
            finally:
                watch.seen = None
    return counter.counted


def even_ends(step: Step) -> Callable[[Tensor, torch.dtype], Tensor]:
    """Return what makes up where the tokens of experts end, as they ask for it on the host."""
    choices = step.rows * step.seq_len * (step.config.experts.top_k if step.config.experts else 0)

    def values(source: Tensor, dtype: torch.dtype) -> Tensor:
        if source.dtype != torch.int32 or source.ndim != 1:
            return torch.ones(source.shape, dtype=dtype)
        return torch.arange(1, len(source) + 1, dtype=dtype) * (choices // len(source))

    return values


def attended_share(config: ModelConfig, seq_len: int) -> float:
    """Return the share of the keys that a token sees in the mean layer with attention."""
    macs = cost_of(config).macs_per_key
    seen = sum(macs[reach] * mean_keys(config, reach, seq_len) for reach in macs)
    return seen / (sum(macs.values()) * seq_len)


class Counter:
    """Counts each operation that it sees."""

    def __init__(self, step: Step, lowered: Lowered) -> None:
        self.counted: list[Counted] = []
        self._share = attended_share(step.config, step.seq_len)
        self._graph_part: str | None = None  # of the compiled graph that runs now
        self._elsewhere = 0.0  # bytes of this graph that are counted on their own
        self._opened = 0  # operations of Pion in this graph
        lowered.entered, lowered.left = self._enter, self._leave

    def see(self, operation: Operation) -> None:
        """Count an operation on the card."""
        func = operation.func
        name = func.overloadpacket.__name__ if isinstance(func, OpOverload) else str(func)
        in_graph = self._graph_part is not None
        if isinstance(func, OpOverload) and func.namespace.startswith("pion"):
            if in_graph:  # inductor counts it as one kernel, and we count what it consists of
                self._elsewhere += _moved(operation)
                self._opened += 1
            return
        if _has_no_kernel(operation, name):
            return
        flops, moved = self._flops(operation), _moved(operation)
        if in_graph and operation.inside is None:
            if flops == 0:
                return
            self._elsewhere += moved
        launches = 0 if in_graph and operation.inside is None else 1
        fp32 = flops > 0 and _in_fp32(operation)
        part = self._part_of(name, flops)
        self.counted.append(Counted(part, name, flops, moved, fp32, launches))

    def _flops(self, operation: Operation) -> float:
        func, args, result = operation.func, operation.args, operation.result
        if func in ATTENTION:
            flops = flop_registry[func](*args, **operation.kwargs, out_val=result)
            return float(flops) * self._share
        if not isinstance(func, OpOverload):
            return 0.0
        packet = func.overloadpacket
        if packet in PRODUCTS:
            a, b = _factors(operation)
            return 2.0 * a.numel() * b.shape[-1]
        if packet not in flop_registry:
            return 0.0
        flops = float(flop_registry[packet](*args, **operation.kwargs, out_val=result))
        return flops * self._share if "attention" in packet.__name__ else flops

    def _part_of(self, name: str, flops: float) -> str:
        part = self._graph_part or _part()
        if flops == 0:
            return part
        if "attention" in name:
            return "attention"
        return {"loss": "products of the head"}.get(part, "products of the blocks")

    def _enter(self, graph: Graph) -> None:
        self._graph_part, self._elsewhere, self._opened = _part(), 0.0, 0

    def _leave(self, graph: Graph) -> None:
        part, self._graph_part = self._graph_part, None
        moved = max(0.0, graph.bytes_moved - self._elsewhere)
        launches = graph.launches - self._opened
        self.counted.append(Counted(part or "", "compiled", 0.0, moved, False, launches))


def _part() -> str:
    """Return the part of the step that the line of our code belongs to that now runs."""
    return PARTS.get(where().partition(":")[0], "blocks, but products")


def _factors(operation: Operation) -> tuple[Tensor, Tensor]:
    """Return the matrices that a product multiplies."""
    first = PRODUCTS[operation.func.overloadpacket]
    return operation.args[first], operation.args[first + 1]


def _in_fp32(operation: Operation) -> bool:
    """Return whether an operation multiplies fp32."""
    if not isinstance(operation.func, OpOverload) or operation.func.overloadpacket not in PRODUCTS:
        return _tensors(operation)[0].dtype == torch.float32
    return _factors(operation)[0].dtype == torch.float32


def _has_no_kernel(operation: Operation, name: str) -> bool:
    func, args = operation.func, operation.args
    if not isinstance(func, OpOverload):
        return False
    if func.is_view or name in NO_KERNEL or not _tensors(operation):
        return True
    # `x[rows] += y` ends with a copy of a view onto itself, which torch leaves out.
    return name == "copy_" and isinstance(args[1], FakeTensor) and _same_place(args[0], args[1])


def _same_place(a: Tensor, b: Tensor) -> bool:
    shapes = (a.shape, a.stride(), a.storage_offset()) == (b.shape, b.stride(), b.storage_offset())
    return shapes and a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _tensors(operation: Operation) -> list[Tensor]:
    leaves = tree_leaves((operation.args, operation.kwargs, operation.result))
    return [leaf for leaf in leaves if isinstance(leaf, FakeTensor) and leaf.is_cuda]


def _moved(operation: Operation) -> float:
    """Return the bytes that an operation reads and writes."""
    func, given = operation.func, (operation.args, operation.kwargs)
    if not isinstance(func, OpOverload):
        return _size(given) + _size(operation.result)
    name = func.overloadpacket.__name__
    values = [*operation.args, *operation.kwargs.values()]
    names = [argument.name for argument in func._schema.arguments[: len(operation.args)]]
    written_names = {
        argument.name
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    changed = [v for n, v in zip([*names, *operation.kwargs], values) if n in written_names]
    written = _size(changed) if changed else _size(operation.result)
    if name in LOOKUPS:
        return 2 * written + _size(operation.args[1:])
    if name in ("index_put_", "scatter_add_", "scatter_"):
        return 2 * _size(operation.args[2:]) + _size(operation.args[1])
    read = _size(given)
    if changed and (name in OVERWRITING or func._overloadname in OUT):
        read -= written
    if name.startswith("_fused_adamw"):  # it reads the gradients, and does not write them
        written -= _size(operation.args[1])
    return read + written


def _size(tree: Any) -> float:
    """Return the bytes of all tensors on the card; a tensor that is there twice counts once."""
    own = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, FakeTensor)}
    total = 0
    for tensor in own.values():
        if tensor.is_cuda:  # an expanded tensor is larger than its memory
            whole = tensor.untyped_storage().nbytes()
            total += min(tensor.numel() * tensor.element_size(), whole)
    return float(total)
