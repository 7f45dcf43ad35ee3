"""Two ranks on pretended cards: what they send, where their gradients are, and how blocks compile.

Under soak, every family is rehearsed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cuda_rehearsal.compiled import structures
from tests.cuda_rehearsal.two_ranks import (
    FAMILIES,
    MICRO_BATCHES,
    Rank,
    named,
    read_ranks,
)

Ranks = dict[str, list[Rank]]

# The largest report that is summed over ranks: a few numbers for each layer.
MOST_REPORTED = 256
# Where sliced products of experts copy to the host where the slices end.
SLICES = "pion/model/feedforward/expert_products.py"


@pytest.fixture(scope="module", params=["suite", pytest.param("all", marks=pytest.mark.soak)])
def ranks(request: pytest.FixtureRequest, run_on_pretended_card: Callable[..., str]) -> Ranks:
    found = read_ranks(run_on_pretended_card("tests.cuda_rehearsal.two_ranks", request.param))
    assert list(found) == named(request.param)
    return found


def test_the_ranks_have_different_numbers_of_micro_batches(ranks: Ranks) -> None:
    for both in ranks.values():
        assert tuple(len(rank.storages) for rank in both) == MICRO_BATCHES


def test_both_ranks_send_the_same_in_the_same_order(ranks: Ranks) -> None:
    """Else two real ranks would wait for each other forever, or sum what is not the same."""
    for family, (one, other) in ranks.items():
        assert [(sent.operation, sent.bytes, sent.device) for sent in one.sent] == [
            (sent.operation, sent.bytes, sent.device) for sent in other.sent
        ], family


def test_each_gradient_is_sent_once(ranks: Ranks) -> None:
    for family, both in ranks.items():
        for rank in both:
            gradients = rank.of_gradients()
            assert {sent.operation for sent in gradients} == {"allreduce_"}
            # No rounding up: these models have no gradient with a fraction of 16 bytes, or few.
            total = sum(sent.bytes for sent in gradients)
            assert rank.gradients <= total < rank.gradients * 1.001, family


def test_all_else_that_is_sent_is_known_and_small(ranks: Ranks) -> None:
    for family, both in ranks.items():
        for rank in both:
            others = [sent for sent in rank.sent if sent not in rank.of_gradients()]
            whether_to_stop = [sent.bytes for sent in others if sent.device == "cpu"]
            assert whether_to_stop == [8] * max(MICRO_BATCHES)
            targets, *reports, loss = [sent.bytes for sent in others if sent.device == "cuda"]
            assert targets == loss == 4
            assert all(report <= 4 * MOST_REPORTED for report in reports)
            if family == "dense":
                assert reports == []
            assert {sent.operation for sent in others} == {"allreduce_"}


def test_gradients_are_sent_while_the_backward_pass_computes(ranks: Ranks) -> None:
    for family, both in ranks.items():
        for rank in both:
            early = [sent.in_backward for sent in rank.of_gradients()]
            assert all(early), family


def test_there_is_one_set_of_gradients_in_the_buckets_that_are_sent(ranks: Ranks) -> None:
    for family, both in ranks.items():
        for rank in both:
            first = rank.storages[0]
            assert all(storages == first for storages in rank.storages), family
            assert sorted(first.values()) == sorted(s.bytes for s in rank.of_gradients()), family


def test_a_block_is_one_graph_and_equal_blocks_share_it(ranks: Ranks) -> None:
    for family, both in ranks.items():
        for rank in both:
            assert rank.block_compiles() == structures(FAMILIES[family]), family
            assert rank.graphs == sum(rank.compiles.values()), (family, rank.compiles)


def test_the_host_does_not_wait_for_the_card(ranks: Ranks) -> None:
    waits = {
        family: [finding for rank in both for finding in rank.findings if SLICES not in finding]
        for family, both in ranks.items()
    }
    assert {family: found for family, found in waits.items() if found} == {}
