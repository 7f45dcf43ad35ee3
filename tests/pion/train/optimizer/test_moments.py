"""The moments of a lone rank, and those of each of several ranks, which divide them."""

import dataclasses

import pytest

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.train.memory import predict_memory
from pion.train.optimizer.moments import each_matrix, moment_bytes
from pion.train.workload import Workload

MUON = Workload(ModelConfig.preset("pion-small"), 2048, "bfloat16", "muon", "cuda", False)


def test_a_lone_rank_has_all_moments_and_several_divide_them():
    # 8,000 bytes of AdamW and four matrices of 6 elements.
    matrices = [(2, 3)] * 4
    assert moment_bytes(8000, matrices, 1) == 8000 + 4 * 24
    assert moment_bytes(8000, matrices, 2) == 4000 + 4 * 12
    assert moment_bytes(8000, matrices, 3) == 2667 + 4 * 12, "one rank has two matrices"
    assert moment_bytes(0, [], 8) == 0


def test_the_matrices_of_a_stack_count_one_by_one():
    assert each_matrix([(4, 2, 3), (5, 6)]) == ((2, 3), (2, 3), (2, 3), (2, 3), (5, 6))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": "adamw"},
        {"optimizer": "adamw8bit"},
        {"lora": Lora(), "optimizer": "adamw"},
    ],
)
@pytest.mark.usefixtures("untraced")
def test_the_memory_of_a_rank_has_its_share_of_the_moments(changed):
    work = dataclasses.replace(MUON, **changed)
    alone, one_of_8 = (
        predict_memory(dataclasses.replace(work, ranks=ranks), micro_batch=4, recompute=False)
        for ranks in (1, 8)
    )
    # Each tensor is rounded up, and LoRA has many small ones.
    assert one_of_8.optimizer == pytest.approx(alone.optimizer / 8, rel=0.15)
    assert one_of_8.weights == alone.weights, "every rank has all weights and gradients"
    assert one_of_8.total < alone.total
