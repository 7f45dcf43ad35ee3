"""What one compiled block needs: what torch's partitioner keeps of its graph, and its buffers.

Nothing is compiled. The forward and the backward pass of the block become one graph, with the
decompositions of inductor, and the partitioner that inductor uses cuts it in two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from pion.train.memory_trace.backward import root_of, run_backward
from pion.train.memory_trace.block_memory import Measured
from pion.train.memory_trace.live_bytes import ROUNDED_TO, LiveBytes
from pion.train.memory_trace.stand_ins import OPENED, replaced


def measure_compiled_block(
    live: LiveBytes,
    run: Callable[[list[Tensor], list[Tensor]], Any],
    weights: list[Tensor],
    given: list[Tensor],
) -> Measured:
    """Return what `run(weights, given)` needs if it is compiled, forward and backward."""
    history, live.history = live.history, []
    with replaced(live, "opened", {}):  # a graph has them closed
        forward, backward, results = _partitioned(run, weights, given)
    output = next(node for node in forward.graph.nodes if node.op == "output")
    returned = [_stored(node) for node in tree_leaves(output.args[0]) if isinstance(node, fx.Node)]
    kept = dict.fromkeys(returned[results:])
    primals = [node for node in forward.graph.nodes if node.op == "placeholder"]
    inputs = primals[len(weights) :]
    apart = {*primals, *returned[:results]}
    sizes = sum(_bytes(node) for node in kept if node not in apart)
    run_forward = tuple(_buffers(live, forward, set(primals)))
    tangents = {
        node
        for node in backward.graph.nodes
        if node.op == "placeholder" and node.name in {primal.name for primal in primals}
    }
    run_back = tuple(_buffers(live, backward, tangents))
    live.history = history
    return Measured(
        kept=sizes,
        copies=0,
        inputs_kept=tuple(node in kept for node in inputs),
        forward=run_forward,
        again=run_forward,
        backward=run_back,
    )


def _partitioned(
    run: Callable[[list[Tensor], list[Tensor]], Any], weights: list[Tensor], given: list[Tensor]
) -> tuple[fx.GraphModule, fx.GraphModule, int]:
    """Return the graphs of both passes, and how many results the forward pass has."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def results_of(primals: list[Tensor]) -> list[Tensor]:
        found = tree_leaves(run(primals[: len(weights)], primals[len(weights) :]))
        return [leaf for leaf in found if isinstance(leaf, Tensor)]

    def joint(primals: list[Tensor], tangents: list[Tensor]) -> Any:
        results = results_of(primals)
        learned = [result for result in results if result.requires_grad]
        roots = [root_of(r, tangent) for r, tangent in zip(learned, tangents, strict=True)]
        found: dict[int, Tensor] = {}
        run_backward(roots, lambda leaf, gradient: found.__setitem__(id(leaf), gradient))
        detached = [result.detach() for result in results]
        # The block also learns weights that it shares with others, and gets among its inputs.
        own = [found.pop(id(primal), None) for primal in primals]
        return detached, own, list(found.values())

    primals = [t.detach().requires_grad_(t.requires_grad) for t in (*weights, *given)]
    shapes = results_of(primals)
    tangents = [torch.ones_like(result) for result in shapes if result.requires_grad]
    graph = make_fx(joint, decomposition_table=select_decomp_table())(primals, tangents)
    for node in graph.graph.nodes:
        _write_elsewhere(node)
    return *min_cut_rematerialization_partition(
        graph,
        [*primals, *tangents],
        num_fwd_outputs=len(shapes),
        static_lifetime_input_indices=list(range(len(weights))),
    ), len(shapes)


def _write_elsewhere(node: fx.Node) -> None:
    """Let an operation that writes into its argument return its result, as compiled code does."""
    if not isinstance(node.target, OpOverload):
        return
    name = node.target._schema.name
    if name.startswith("aten::") and name.endswith("_") and not name.endswith("__"):
        packet = getattr(torch.ops.aten, name.removeprefix("aten::")[:-1])
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
    return len(node.users) > 1 or any(not (_fuses(user) or _view(user)) for user in node.users)


def _fuses(node: fx.Node) -> bool:
    """Return whether inductor computes the operation in one kernel with those around it."""
    return bool(_kinds().is_fusible(node))


def _view(node: fx.Node) -> bool:
    return node.op == "call_function" and bool(_kinds().is_view(node))


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
    values = fx.map_arg(node.args, lambda argument: torch.empty_like(argument.meta["val"]))
    start, live.history = live.live, []
    body(*values)
    return max(live.history) - start
