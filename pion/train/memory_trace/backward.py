"""A backward pass in Python, in the order of torch's own.

Torch's engine asks the driver about each device of the tensors. A fake tensor may be on a card that
is not there, so its backward pass can't run in the engine.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

# A node of the graph that autograd makes. Torch has no common type for them.
Node = Any
Root = tuple[Node, int, Tensor]  # a node, the number of its output, and the gradient of the output

ACCUMULATE = "torch::autograd::AccumulateGrad"


def root_of(tensor: Tensor, gradient: Tensor) -> Root:
    """Return where the backward pass of a tensor with this gradient begins."""
    return tensor.grad_fn, tensor.output_nr, gradient


@torch.no_grad()
def run_backward(roots: list[Root]) -> None:
    """Run the backward pass from `roots`, and empty the list, so that nothing holds the graph.

    What a node has kept is free when nothing refers to the node any more, so no variable here may
    outlive its use. Gradients of leaves are added to `.grad`.
    """
    gradients: dict[Node, list[Tensor | None]] = {}
    node: Node = None
    while roots:
        node, slot, gradient = roots.pop()
        node_gradients = gradients.setdefault(node, [None] * len(node._input_metadata))
        node_gradients[slot] = _sum(node_gradients[slot], gradient)
        del node_gradients, gradient
    waiting = _count_uses(list(gradients))
    parents: dict[Node, list[Node]] = {}
    numbers = itertools.count()
    ready = [(-_order(node), next(numbers), node) for node in gradients if node not in waiting]
    heapq.heapify(ready)
    node = None
    while ready:
        _, _, node = heapq.heappop(ready)
        held = parents.pop(node, None)
        incoming = gradients.pop(node, None)
        edges = node.next_functions
        results = [None] * len(edges) if incoming is None else _apply(node, incoming)
        incoming = None
        # Torch 2.11 does not let us hold a node that is written in Python: its parent does.
        for user, _ in edges:
            if isinstance(user, BackwardCFunction):
                parents.setdefault(user, []).append(node)
        node = None
        for number, (user, slot) in enumerate(edges):
            if user is None:
                continue
            result, results[number] = results[number], None
            if result is not None:
                node_gradients = gradients.setdefault(user, [None] * len(user._input_metadata))
                node_gradients[slot] = _sum(
                    node_gradients[slot], _fitted(result, user._input_metadata[slot])
                )
                del node_gradients
            del result
            waiting[user] -= 1
            if not waiting[user]:
                del waiting[user]
                heapq.heappush(ready, (-_order(user), next(numbers), user))
        user = None
        del edges, results, held


def _add_gradient(leaf: Tensor, gradient: Tensor) -> None:
    """Add a gradient to that of a leaf, without a copy of the first one."""
    if leaf.grad is None:
        leaf.grad = gradient
    else:
        leaf.grad += gradient


def _count_uses(roots: list[Node]) -> dict[Node, int]:
    """Return how many nodes give a gradient to each node that can be reached."""
    uses: dict[Node, int] = {}
    seen = set(roots)
    while roots:
        for user, _ in roots.pop().next_functions:
            if user is None:
                continue
            uses[user] = uses.get(user, 0) + 1
            if user not in seen:
                seen.add(user)
                roots.append(user)
    return uses


def _apply(node: Node, incoming: list[Tensor | None]) -> list[Tensor | None]:
    if node.name() == ACCUMULATE:
        if incoming[0] is not None:
            _add_gradient(node.variable, incoming[0])
        return []
    # A function that is written in Python can't be called like the others.
    in_python = isinstance(node, BackwardCFunction)
    result = node.apply(*incoming) if in_python else node(*incoming)
    results = result if isinstance(result, tuple) else (result,)
    return [
        result_part
        for some in results
        for result_part in (some if isinstance(some, list) else [some])
    ]


def _fitted(gradient: Tensor, expected: Any) -> Tensor:
    if gradient.shape != torch.Size(expected.shape):
        gradient = gradient.sum_to_size(expected.shape)
    return gradient if gradient.dtype == expected.dtype else gradient.to(expected.dtype)


def _sum(before: Tensor | None, more: Tensor) -> Tensor:
    return more if before is None else before + more


def _order(node: Node) -> int:
    """Torch runs what was made last first, and gradients of weights before everything else."""
    return 2**63 if node.name() == ACCUMULATE else int(node._sequence_nr())
