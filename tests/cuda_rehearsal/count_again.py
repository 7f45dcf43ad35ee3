"""Repeat the counts that benchmarks/results/roofline.json has of a step.

Also count how often the kernel of the loss passes through a row of logits.

test_roofline.py starts this program: `python -m tests.cuda_rehearsal.count_again`.
"""

from __future__ import annotations

import re

import torch

from benchmarks.roofline import checked_steps, count_checked
from pion.model.loss import linear_cross_entropy
from tests.cuda_rehearsal.lowering import lowering
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import hand_back

# A Triton kernel in inductor's code: the source of a module.
_KERNEL = re.compile(r"async_compile\.triton\('\w+', r?'''(.*?)'''", re.DOTALL)


def main() -> None:
    with pretended_card() as watch:
        passes = passes_through_a_row(cap=None), passes_through_a_row(cap=15.0)
        counts = count_checked(watch, checked_steps())
    hand_back({"now": counts, "passes": passes})


def passes_through_a_row(cap: float | None) -> int:
    """Return how many loops over the columns of logits the kernels of a loss have."""
    rows, columns = 8192, 50_304
    with torch.device("cuda"):
        hidden = torch.zeros(rows, 64, requires_grad=True)
        weight = torch.zeros(columns, 64, requires_grad=True)
        targets = torch.zeros(rows, dtype=torch.int64)
    with lowering() as lowered, torch.autocast("cuda", torch.bfloat16):
        linear_cross_entropy(hidden, weight, targets, cap, compiled=True)
    sources = [source for graph in lowered.graphs for source in _KERNEL.findall(graph.source)]
    return sum(s.count("for r0_offset in") for s in sources if f"r0_numel = {columns}" in s)


if __name__ == "__main__":
    main()
