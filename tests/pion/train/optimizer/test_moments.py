"""The moments of a lone rank, and those of each of several ranks, which divide Muon's."""

import dataclasses

import pytest

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.model.params_and_flops import shapes_and_roles
from pion.train.memory import predict_memory
from pion.train.optimizer.moments import each_matrix, momentum_bytes
from pion.train.workload import Workload

MUON = Workload(ModelConfig.preset("pion-small"), 2048, "bfloat16", "muon", "cuda", False)


def test_a_lone_rank_has_all_momentum_and_several_divide_it():
    matrices = [(2, 3)] * 4
    assert momentum_bytes(matrices, 1) == 4 * 24
    assert momentum_bytes(matrices, 2) == 4 * 12
    assert momentum_bytes(matrices, 3) == 4 * 12, "one rank has two matrices"
    assert momentum_bytes([], 8) == 0


def test_the_matrices_of_a_stack_count_one_by_one():
    assert each_matrix([(4, 2, 3), (5, 6)]) == ((2, 3), (2, 3), (2, 3), (2, 3), (5, 6))


@pytest.mark.parametrize("lora", [None, Lora()])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adamw8bit"])
@pytest.mark.usefixtures("untraced")
def test_the_memory_of_a_rank_has_its_share_of_muons_momentum(optimizer, lora):
    work = dataclasses.replace(MUON, optimizer=optimizer, lora=lora)
    alone, one_of_8 = (
        predict_memory(dataclasses.replace(work, ranks=ranks), micro_batch=4, recompute=False)
        for ranks in (1, 8)
    )
    assert one_of_8.weights == alone.weights, "every rank has all weights and gradients"
    if optimizer == "muon" and lora is None:
        matrices = sum(
            shape.numel() for shape, role in shapes_and_roles(MUON.config) if role == "matrix"
        )
        assert alone.optimizer - one_of_8.optimizer == pytest.approx(4 * matrices * 7 / 8, rel=0.1)
    else:
        assert one_of_8.optimizer == alone.optimizer
