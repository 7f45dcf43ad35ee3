"""Repeat the counts that benchmarks/results/roofline.json has of a step, and count a worse step.

test_roofline.py starts this program: `python -m tests.cuda_rehearsal.count_again`.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.roofline import EAGER, checked_steps, count_checked
from pion.model.feedforward.dense import SwiGLU
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import hand_back


def main() -> None:
    right = SwiGLU.forward

    def forward_with_a_copy(self: SwiGLU, x: Tensor, inputs: Any) -> Any:
        return right(self, x.clone(), inputs)

    with pretended_card() as watch:
        counts = count_checked(watch, checked_steps())
        with mock.patch.object(SwiGLU, "forward", forward_with_a_copy):
            worse = count_checked(watch, {EAGER: checked_steps()[EAGER]})
    hand_back({"now": counts, "worse": worse})


if __name__ == "__main__":
    main()
