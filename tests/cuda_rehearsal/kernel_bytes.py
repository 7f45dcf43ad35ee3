"""Count the bytes that the kernels of a lowered graph read and write.

Inductor's own count (`GraphLowering.count_bytes`) takes a buffer as read whole by a fused kernel
that reads a part of it, such as the queries of one product for queries, keys and values. Here a
kernel is counted by the addresses of its loads and stores (touched.py). Kernels of libraries count
the sizes of the views that they get. No kernel counts more than the whole of a buffer.
"""

from __future__ import annotations

import math
from typing import Any

from torch._inductor import ir
from torch._inductor.dependencies import MemoryDep
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode

from tests.cuda_rehearsal.touched import touched


def bytes_of(graph: GraphLowering) -> int:
    """Return the bytes that one run of all kernels of the graph reads and writes."""
    return sum(sum(bytes_of_kernel(graph, node).values()) for node in graph.scheduler.nodes)


def bytes_of_kernel(graph: GraphLowering, node: Any) -> dict[str, int]:
    """Return the bytes that a kernel reads and writes, by buffer."""
    counted: dict[str, int] = node.get_read_write_buffer_accesses(True, True)
    for name in counted:
        buffer = graph.name_to_buffer.get(name) or graph.graph_inputs.get(name)
        layout = buffer.maybe_get_layout() if buffer is not None else None
        if not isinstance(layout, ir.Layout) or isinstance(layout, ir.NoneLayout):
            continue  # results of a library's kernel, which inductor counts one by one
        width, whole = layout.dtype.itemsize, int(math.prod(layout.size))
        if isinstance(node, ExternKernelSchedulerNode):
            counted[name] = min(counted[name], _viewed(node, name, whole) * width)
            continue
        accesses = (*node.read_writes.reads, *node.read_writes.writes)
        own = [access for access in accesses if access.name == name]
        if all(isinstance(access, MemoryDep) for access in own):
            counted[name] = min(whole * width, touched(own, whole, width))
    return counted


def _viewed(node: ExternKernelSchedulerNode, name: str, whole: int) -> int:
    """Return how many elements of a buffer a library's kernel gets, by its views."""
    given = [each for each in getattr(node.node, "inputs", ()) if isinstance(each, ir.IRNode)]
    views = [each for each in given if name in each.get_read_names()]
    if not views:  # it writes the buffer, or we do not know
        return whole
    return min(whole, sum(int(math.prod(view.get_size())) for view in views))
