"""Two ranks with parts of a model, on pretended cards: what they send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.cuda_rehearsal.two_ranks import BY_MUON, FAMILIES, MICRO_BATCHES, Rank, read_ranks

pytestmark = pytest.mark.soak

Ranks = dict[str, list[Rank]]

ROUNDS = max(MICRO_BATCHES)
# Where sliced products of experts copy to the host where the slices end.
SLICES = "pion/model/feedforward/expert_products.py"
GATHER, SCATTER, EXCHANGE = "_allgather_base_", "_reduce_scatter_base_", "alltoall_base_"


@pytest.fixture(scope="module")
def ranks(run_on_pretended_card: Callable[..., str]) -> Ranks:
    found = read_ranks(run_on_pretended_card("tests.cuda_rehearsal.two_sharded_ranks", *FAMILIES))
    assert list(found) == list(FAMILIES)
    return found


def test_both_ranks_send_the_same_in_the_same_order(ranks: Ranks) -> None:
    """One rank has fewer micro-batches. It computes another one with the other rank."""
    for family, (one, other) in ranks.items():
        assert [(sent.operation, sent.bytes, sent.device) for sent in one.sent] == [
            (sent.operation, sent.bytes, sent.device) for sent in other.sent
        ], family


def test_each_block_is_gathered_twice_in_each_micro_batch_and_its_gradient_summed_once(
    ranks: Ranks,
) -> None:
    for family, both in ranks.items():
        layers = FAMILIES[family].n_layers
        for rank in both:
            of_blocks = [s for s in rank.sent if "in _run_block" in s.where]
            assert [s.operation for s in of_blocks] == [GATHER] * (layers * ROUNDS), family
            backward = Counter(sent.operation for sent in rank.sent if sent.in_backward)
            assert backward[GATHER] == layers * ROUNDS, family
            assert backward[SCATTER] >= layers * ROUNDS, family


def test_blocks_are_gathered_in_bfloat16_and_gradients_summed_in_fp32(ranks: Ranks) -> None:
    for rank in ranks.get("dense", []):
        gathered = {s.bytes for s in rank.sent if "in _run_block" in s.where}
        summed = {s.bytes for s in rank.sent if s.operation == SCATTER}
        assert len(gathered) == 1
        assert 2 * gathered.pop() in summed


def test_only_matrices_of_muon_are_exchanged_by_the_optimizer(ranks: Ranks) -> None:
    for family, both in ranks.items():
        for rank in both:
            found = {
                sent.where.partition(":")[0] for sent in rank.sent if sent.operation == EXCHANGE
            }
            assert found == (
                {"pion/train/optimizer/sharded_muon.py"} if family in BY_MUON else set()
            ), family


def test_each_moment_is_saved_by_one_rank_and_half_of_them_by_each(ranks: Ranks) -> None:
    """Rank 0 also saves those of weights that both ranks keep whole, such as PILON's positions."""
    for family, both in ranks.items():
        assert sum(rank.moments for rank in both) == both[0].all_moments, family
        for rank in both:
            assert rank.moments <= 0.52 * rank.all_moments, family


def test_the_host_does_not_wait_for_the_card(ranks: Ranks) -> None:
    waits = {
        family: [finding for rank in both for finding in rank.findings if SLICES not in finding]
        for family, both in ranks.items()
    }
    assert {family: found for family, found in waits.items() if found} == {}
