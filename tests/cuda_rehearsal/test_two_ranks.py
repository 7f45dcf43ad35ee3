"""Two ranks on pretended cards: what they send, and where their gradients are.

Under soak, every family is rehearsed: whole on each rank, and sharded, with a part on each.
"""

import functools
from collections import Counter

import pytest

from pion.train.optimizer.muon import BATCH_ELEMENTS
from tests.cuda_rehearsal.two_ranks import BY_MUON, FAMILIES, MICRO_BATCHES, named, read_ranks

# The largest report that is summed over ranks: a few numbers for each layer.
MOST_REPORTED = 256
# Where sliced products of experts copy to the host where the slices end.
SLICES = "pion/model/feedforward/expert_products.py"


GATHER, SCATTER, EXCHANGE = "_allgather_base_", "_reduce_scatter_base_", "alltoall_base_"
ALL = pytest.param("all", marks=pytest.mark.soak)


@pytest.fixture(scope="module")
def ranks_of(run_on_pretended_card):
    """`ranks_of(name)`: what both ranks did in each family; the program runs once for a name."""

    @functools.cache
    def read(name):
        found = read_ranks(run_on_pretended_card("tests.cuda_rehearsal.two_ranks", name))
        assert list(found) == named(name)
        return found

    return read


@pytest.fixture(params=["suite", ALL])
def ranks(request, ranks_of):
    return ranks_of(request.param)


@pytest.fixture
def sharded(ranks_of):
    return ranks_of("sharded")


@pytest.fixture(params=["suite", ALL, pytest.param("sharded", marks=pytest.mark.soak)])
def either(request, ranks_of):
    return ranks_of(request.param)


def test_the_ranks_have_different_numbers_of_micro_batches(ranks):
    for both in ranks.values():
        assert tuple(len(rank.storages) for rank in both) == MICRO_BATCHES


def test_both_ranks_send_the_same_in_the_same_order(either):
    """Else two real ranks would wait for each other forever, or sum what is not the same.

    Of a sharded model, the rank with fewer micro-batches computes another one with the other rank.
    """
    for family, (one, other) in either.items():
        assert [(sent.operation, sent.bytes, sent.device) for sent in one.sent] == [
            (sent.operation, sent.bytes, sent.device) for sent in other.sent
        ], family


def test_each_gradient_is_sent_once(ranks):
    for family, both in ranks.items():
        for rank in both:
            gradients = rank.of_gradients()
            assert {sent.operation for sent in gradients} == {"allreduce_"}
            # No rounding up: these models have no gradient with a fraction of 16 bytes, or few.
            total = sum(sent.bytes for sent in gradients)
            assert rank.gradients <= total < rank.gradients * 1.001, family


def test_all_else_that_is_sent_is_known_and_small(ranks):
    for family, both in ranks.items():
        for rank in both:
            known = rank.of_gradients() + rank.of_updates()
            others = [sent for sent in rank.sent if sent not in known]
            whether_to_stop = [sent.bytes for sent in others if sent.device == "cpu"]
            assert whether_to_stop == [8] * max(MICRO_BATCHES)
            targets, *reports, loss = [sent.bytes for sent in others if sent.device == "cuda"]
            assert targets == loss == 4
            assert all(report <= 4 * MOST_REPORTED for report in reports)
            if family == "dense":
                assert reports == []
            assert {sent.operation for sent in others} == {"allreduce_"}


def test_gradients_are_sent_while_the_backward_pass_computes(ranks):
    for family, both in ranks.items():
        for rank in both:
            early = [sent.in_backward for sent in rank.of_gradients()]
            assert all(early), family


def test_there_is_one_set_of_gradients_in_the_buckets_that_are_sent(ranks):
    for family, both in ranks.items():
        for rank in both:
            first = rank.storages[0]
            assert all(storages == first for storages in rank.storages), family
            assert sorted(first.values()) == sorted(s.bytes for s in rank.of_gradients()), family


def test_each_update_of_muon_is_sent_once_by_the_rank_that_owns_it_and_not_all_at_once(ranks):
    for family, both in ranks.items():
        for rank in both:
            exchanges = rank.of_updates()
            # Bytes are of what the rank gets, all of it, and of what it sends.
            got = sum(sent.bytes for sent in exchanges) * 2 / 3
            assert rank.updates <= got <= 1.05 * rank.updates, family
            assert {sent.operation for sent in exchanges} <= {GATHER}
            assert not any(sent.in_backward for sent in exchanges)
            assert all(sent.bytes <= 1.5 * 2 * BATCH_ELEMENTS for sent in exchanges)
            assert bool(exchanges) == (family in BY_MUON)


def test_the_host_does_not_wait_for_the_card(either):
    waits = {
        family: [finding for rank in both for finding in rank.findings if SLICES not in finding]
        for family, both in either.items()
    }
    assert {family: found for family, found in waits.items() if found} == {}


# ---------------------------------------------------------------- sharded


@pytest.mark.soak
def test_each_block_is_gathered_twice_in_each_micro_batch_and_its_gradient_summed_once(sharded):
    for family, both in sharded.items():
        layers, rounds = FAMILIES[family].n_layers, max(MICRO_BATCHES)
        for rank in both:
            of_blocks = [s for s in rank.sent if "in _run_block" in s.where]
            assert [s.operation for s in of_blocks] == [GATHER] * (layers * rounds), family
            backward = Counter(sent.operation for sent in rank.sent if sent.in_backward)
            assert backward[GATHER] == layers * rounds, family
            assert backward[SCATTER] >= layers * rounds, family


@pytest.mark.soak
def test_blocks_are_gathered_in_bfloat16_and_gradients_summed_in_fp32(sharded):
    for rank in sharded.get("dense", []):
        gathered = {s.bytes for s in rank.sent if "in _run_block" in s.where}
        summed = {s.bytes for s in rank.sent if s.operation == SCATTER}
        assert len(gathered) == 1
        assert 2 * gathered.pop() in summed


@pytest.mark.soak
def test_half_of_the_moments_are_saved_by_each_rank(sharded):
    """Rank 0 also saves those of weights that both ranks keep whole, such as PILON's positions."""
    for family, both in sharded.items():
        assert sum(rank.moments for rank in both) == both[0].all_moments, family
        assert all(rank.moments <= 0.52 * rank.all_moments for rank in both)


@pytest.mark.soak
def test_only_matrices_of_muon_are_exchanged_by_the_optimizer(sharded):
    for family, both in sharded.items():
        for rank in both:
            found = {
                sent.where.partition(":")[0] for sent in rank.sent if sent.operation == EXCHANGE
            }
            assert found == (
                {"pion/train/optimizer/divided_muon.py"} if family in BY_MUON else set()
            ), family
