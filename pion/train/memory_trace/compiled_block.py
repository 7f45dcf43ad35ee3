"""What one compiled block needs: what torch's partitioner keeps of its graph, and its buffers.

Nothing is compiled. The forward and the backward pass of the block become one graph, with the
decompositions of inductor, and the partitioner that inductor uses cuts it in two.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from pion.train.memory_trace.backward import root_of, run_backward
from pion.train.memory_trace.block_memory import ROWS, Measured
from pion.train.memory_trace.live_bytes import ROUNDED_TO, LiveBytes
from pion.train.memory_trace.stand_ins import OPENED, replaced

# A prime number of rows that no size of a model reaches: a dimension of `a` times so many and `b`
# more has `a` elements for each row, and `b` for all.
MANY_ROWS = 2**27 - 39

# Their results are views, which torch's partitioner does not say of all.
SPLITS = (torch.ops.aten.split.Tensor, torch.ops.aten.split_with_sizes.default)


@dataclass(frozen=True)
class Cut:
    """The graph of a block, cut into its forward and its backward pass."""

    forward: fx.GraphModule
    backward: fx.GraphModule

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Give the nodes these values, by name. Nodes that are not of the whole keep theirs."""
        for node in (*self.forward.graph.nodes, *self.backward.graph.nodes):
            node.meta["val"] = values.get(node.name, node.meta.get("val"))


def measure_compiled_block(
    live: LiveBytes,
    run: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    weights: list[Tensor],
    given: list[Tensor],
    results: list[Tensor],
) -> list[Measured]:
    """Return what `run(weights, given)` needs if it is compiled, at each of ROWS.

    `given` and `results`, which are like those of `run`, have MANY_ROWS. To make the graph takes
    most of the time of a trace, and of so many rows it says what any other number needs.
    """
    # Private to torch. With a new torch, tests/cuda_rehearsal/test_compiled_memory.py tells.
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    history, live.history = live.history, []
    primals = [t.detach().requires_grad_(t.requires_grad) for t in (*weights, *given)]
    tangents = [torch.empty_like(result) for result in results if result.requires_grad]
    opened, live.opened = live.opened, {}  # a graph has them closed
    graph = _joint(run, len(weights), primals, tangents)
    live.opened = opened
    values = {node.name: node.meta.get("val") for node in graph.graph.nodes}
    cut: Cut | None = None
    measured = []
    for rows in ROWS:
        of_rows = {name: tree_map(partial(with_rows, rows=rows), v) for name, v in values.items()}
        if cut is None:
            for node in graph.graph.nodes:
                node.meta["val"] = of_rows[node.name]
            passes = min_cut_rematerialization_partition(
                graph,
                [],  # it does not read the arguments
                num_fwd_outputs=len(results),
                static_lifetime_input_indices=list(range(len(weights))),
            )
            cut = Cut(*passes)
        cut.set_values(of_rows)
        measured.append(_measured(live, cut, len(weights), len(results)))
    live.history = history
    return measured


def with_rows(value: Any, *, rows: int) -> Any:
    """Return a tensor of the shape that one of MANY_ROWS has at so many rows, on the meta device.

    What is no tensor is returned as it is. Only shapes and dtypes are read of the others, and a
    tensor of the meta device is made many times faster than a fake one.
    """
    if not isinstance(value, Tensor):
        return value
    shape = [size // MANY_ROWS * rows + size % MANY_ROWS for size in value.shape]
    with _disable_current_modes():
        like = torch.empty(shape, dtype=value.dtype, device="meta")
    return like.requires_grad_(value.requires_grad)


def _joint(
    run: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    weights: int,
    primals: list[Tensor],
    tangents: list[Tensor],
) -> fx.GraphModule:
    """Return the graph of both passes, in the form that torch's partitioner takes."""
    from torch._inductor.decomposition import select_decomp_table

    def joint(primals: list[Tensor], tangents: list[Tensor]) -> Any:
        with replaced(torch.compiler, "is_compiling", lambda: True):
            results = run(primals[:weights], primals[weights:])
        learned = [result for result in results if result.requires_grad]
        roots = [root_of(r, tangent) for r, tangent in zip(learned, tangents, strict=True)]
        found: dict[int, Tensor] = {}
        run_backward(roots, lambda leaf, gradient: found.__setitem__(id(leaf), gradient))
        detached = [result.detach() for result in results]
        # The block also learns weights that it shares with others, and gets among its inputs.
        own = [found.pop(id(primal), None) for primal in primals]
        return detached, own, list(found.values())

    graph = make_fx(joint, decomposition_table=select_decomp_table())(primals, tangents)
    for node in graph.graph.nodes:
        _write_elsewhere(node)
    return graph


def _measured(live: LiveBytes, cut: Cut, weights: int, results: int) -> Measured:
    output = next(node for node in cut.forward.graph.nodes if node.op == "output")
    returned = [node for node in tree_leaves(output.args[0]) if isinstance(node, fx.Node)]
    kept = _buffers_of(returned[results:])
    primals = [node for node in cut.forward.graph.nodes if node.op == "placeholder"]
    apart = {*primals, *map(_stored, returned[:results])}
    names = {primal.name for primal in primals}
    saved_inputs = {
        node for node in cut.backward.graph.nodes if node.op == "placeholder" and node.name in names
    }
    forward = tuple(_buffers(live, cut.forward, set(primals)))
    return Measured(
        kept=sum(_bytes(node) for node in kept if node not in apart),
        copies=0,
        inputs_kept=tuple(node in kept for node in primals[weights:]),
        forward=forward,
        passing=forward,
        again=forward,
        backward=tuple(_buffers(live, cut.backward, saved_inputs)),
    )


def _buffers_of(returned: list[fx.Node]) -> dict[fx.Node, None]:
    """Return the nodes in whose memory the results of a graph are.

    A part of a split is copied, unless a call that is not fused reads a part where it is: then all
    of it is kept.
    """
    parts = {node: _part(node) for node in returned}
    whole = {_stored(node) for node in returned if parts[node] is None}
    whole |= {_stored(part) for part in parts.values() if part is not None and _in_place(part)}
    return {
        _stored(node) if part is None or _stored(part) in whole else part: None
        for node, part in parts.items()
    }


def _part(node: fx.Node) -> fx.Node | None:
    """Return the part of a split that a node is a view of."""
    while _view(node):
        if node.target is operator.getitem:
            return node
        node = node.all_input_nodes[0]
    return None


def _in_place(part: fx.Node) -> bool:
    """Return whether a call that is not fused reads a node, or a view of it."""
    return not all(user.op == "output" or _fuses(user) for user in _readers(part))


def _write_elsewhere(node: fx.Node) -> None:
    """Let an operation that writes into its argument return its result, as compiled code does."""
    if not isinstance(node.target, OpOverload):
        return
    name = node.target._schema.name
    if name.startswith("aten::") and name.endswith("_") and not name.endswith("__"):
        elsewhere = name.removeprefix("aten::")[:-1]
        packet = getattr(torch.ops.aten, elsewhere)
        node.target = getattr(packet, node.target._overloadname)


def _buffers(live: LiveBytes, graph: fx.GraphModule, elsewhere: set[fx.Node]) -> Iterator[int]:
    """Yield the bytes after each buffer of a compiled graph, besides its inputs at the start.

    A buffer is what another kernel than the one that computes it reads: the arguments and the
    results of products and other calls, and what several operations read. The rest stays in
    registers. An input is free after its last use, unless it is `elsewhere`, too.
    """
    nodes = [node for node in graph.graph.nodes if node.op != "output"]
    output = next(node for node in graph.graph.nodes if node.op == "output")
    returned = {_stored(n) for n in tree_leaves(output.args[0]) if isinstance(n, fx.Node)}
    stored = {node for node in nodes if node.op == "placeholder" or _is_buffer(node, returned)}
    reads: dict[fx.Node, set[fx.Node]] = {}  # the buffers that a node reads in the end
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        reads[node] = set()
        for argument in node.all_input_nodes:
            argument = _stored(argument)
            reads[node] |= {argument} if argument in stored else reads[argument]
        if node in stored:
            last |= dict.fromkeys(reads[node], place)
    frees: dict[int, list[fx.Node]] = {}
    for node, place in last.items():
        if node not in returned and node not in elsewhere:
            frees.setdefault(place, []).append(node)
    now = 0
    for place, node in enumerate(nodes):
        if isinstance(node.target, OpOverload) and node.target in OPENED:
            yield now + _inside(live, OPENED[node.target], node)
        if node in stored and node.op != "placeholder":
            now += _bytes(node)
            yield now
        now -= sum(_bytes(free) for free in frees.get(place, ()))


def _is_buffer(node: fx.Node, returned: set[fx.Node]) -> bool:
    if _view(node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    if node in returned or not _fuses(node):
        return True
    return len(node.users) > 1 or not all(map(_fuses, _readers(node)))


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that read a node where it is, also through a view."""
    for user in node.users:
        if _view(user):
            yield from _readers(user)
        else:
            yield user


def _fuses(node: fx.Node) -> bool:
    """Return whether inductor computes the operation in one kernel with those around it."""
    return bool(_kinds().is_fusible(node))


def _view(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return _view(node.all_input_nodes[0])
    return node.target in SPLITS or bool(_kinds().is_view(node))


@lru_cache(maxsize=1)
def _kinds() -> Any:
    from torch._functorch.partitioners import get_default_op_list

    return get_default_op_list()


def _stored(node: fx.Node) -> fx.Node:
    """Return the node in whose memory the node's result is."""
    while _view(node):
        node = node.all_input_nodes[0]
    return node


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return 0
    size = value.numel() * value.element_size()
    return -(-size // ROUNDED_TO) * ROUNDED_TO


def _inside(live: LiveBytes, body: Callable[..., Any], node: fx.Node) -> int:
    """Return the most bytes at once inside an opened operation, with its results."""
    values = fx.map_arg(
        node.args, lambda argument: torch.empty_like(argument.meta["val"], device=live.device_type)
    )
    start, live.history = live.live, []
    body(*values)
    return max(live.history) - start
