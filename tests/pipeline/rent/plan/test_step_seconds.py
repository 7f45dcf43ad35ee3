"""The seconds of a step on several cards, computed by hand."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from pion.bench.card import shipped_results
from pion.bench.results import read_results, train_speeds
from pion.config.model_config import ModelConfig
from pipeline.rent.plan.step_seconds import (
    LAUNCH_SECONDS,
    LAUNCHES,
    LAUNCHES_OF_UPDATE,
    InParts,
    StepSeconds,
    StepWork,
    step_seconds,
)

# 8 rows of 10 tokens: 80 tokens × 30 FLOPs = 2,400 FLOPs, in micro-batches of 2 rows.
WORK = StepWork(
    global_batch=8,
    seq_len=10,
    forward_flops=10.0,
    backward_flops=20.0,
    micro_batch=2,
    blocks=1,
    gradient_bytes=1000,
    last_bucket_bytes=100,
    update_bytes=600,
    # 5 iterations of 2 × (2 m²k + m³): 70, 50 and 30 FLOPs.
    matrices=((1, 3), (2, 1), (1, 1)),
)


def on(cards: int, *, link: float = 100.0, sharded: bool = True, **changed: float) -> StepSeconds:
    """A step at 100 FLOP/s, over a link of `link` bytes per second."""
    work = dataclasses.replace(WORK, **changed)  # type: ignore[arg-type]
    return step_seconds(work, cards, flops_per_second=100.0, bytes_per_second=link, sharded=sharded)


def test_one_card_sends_nothing_and_updates_all_matrices() -> None:
    alone = on(1)
    assert (alone.computing, alone.muon) == (24.0, 1.5)
    assert (alone.summing, alone.gathering) == (0.0, 0.0)
    assert alone.seconds == 25.5
    assert alone.tokens_per_second == pytest.approx(80 / 25.5)
    assert alone.muon_share == pytest.approx(1.5 / 25.5)


def test_two_cards_share_rows_and_matrices_and_gather_half_of_the_updates() -> None:
    # A rank has 4 rows: 1,200 FLOPs. Its last micro-batch: 2 × 10 × 20 = 400 FLOPs backward, 4 s.
    # Summing: 2 × 1/2 × 1000 bytes = 10 s, of which 4 s are hidden. Matrices: 70 | 50 + 30.
    two = on(2)
    assert (two.computing, two.summing, two.muon, two.gathering) == (12.0, 6.0, 0.8, 3.0)


def test_the_last_bucket_is_never_hidden() -> None:
    # 2 × 1/2 × 1000 / 1000 = 1 s would be hidden by 4 s. The last bucket takes 0.1 s of it.
    assert on(2, link=1000.0).summing == pytest.approx(0.1)
    assert on(2, link=1000.0, last_bucket_bytes=1000).summing == pytest.approx(1.0)


def test_a_last_micro_batch_of_fewer_rows_hides_less() -> None:
    # 4 rows in micro-batches of 3: the last has one row, with 2 s backward.
    assert on(2, micro_batch=3).summing == 8.0
    assert on(2, micro_batch=50).summing == pytest.approx(10 - 8), "all 4 rows at once"


def test_the_rank_with_the_most_rows_decides() -> None:
    # 8 rows on 3 cards: 3, 3, 2.
    assert on(3).computing == 9.0
    assert on(3).gathering == pytest.approx(2 / 3 * 6)


def test_replicated_every_rank_updates_all_and_gathers_nothing() -> None:
    found = on(4, sharded=False)
    assert (found.muon, found.gathering) == (1.5, 0.0)
    assert on(4).muon == 0.7, "sharded: the largest matrix"


def test_recomputed_activations_are_part_of_the_backward_pass() -> None:
    again = on(2, backward_flops=30.0)
    assert (again.computing, again.summing) == (16.0, 4.0)


def test_one_card_is_as_fast_as_it_is_known_to_be() -> None:
    flops = WORK.flops_per_second(tokens_per_second=5.0)
    found = step_seconds(WORK, 1, flops_per_second=flops, bytes_per_second=1.0)
    assert found.tokens_per_second == pytest.approx(5.0)


def test_a_card_computes_no_faster_than_its_host_starts_kernels() -> None:
    # 4 rows in 2 micro-batches of a block, embedding and loss, then the update.
    kernels = 2 * 2 * LAUNCHES + LAUNCHES_OF_UPDATE
    for faster, parts in ((1e6, None), (1e12, None), (1e12, InParts(100, 40, 240))):
        work = dataclasses.replace(WORK, in_parts=parts)
        step = step_seconds(work, 2, flops_per_second=faster, bytes_per_second=1e15)
        assert step.waits_for_host
        assert step.computing == pytest.approx(kernels * LAUNCH_SECONDS)
    assert not on(2).waits_for_host


def test_a_speed_that_a_run_has_measured_has_the_time_of_its_host_in_it() -> None:
    work = dataclasses.replace(WORK, blocks=None)
    found = step_seconds(work, 2, flops_per_second=1e12, bytes_per_second=1e15)
    assert found.seconds < 1e-6
    assert not found.waits_for_host


def test_no_measured_step_was_shorter_than_its_host_needs() -> None:
    """The floor is low enough for every compiled step that a card has ever taken."""
    compared = 0
    for path in shipped_results():
        for speed in train_speeds(read_results(path)):
            blocks = ModelConfig.preset(speed.model).n_layers
            work = dataclasses.replace(
                WORK, blocks=blocks, global_batch=16, micro_batch=speed.micro_batch
            )
            starting = step_seconds(work, 1, flops_per_second=1.0, bytes_per_second=1.0).starting
            assert starting < 16 * speed.seq_len / speed.tokens_per_second, speed
            compared += 1
    assert compared > 10


def test_a_faster_link_is_never_slower_and_more_cards_compute_less_and_gather_more() -> None:
    for cards in range(1, 9):
        seconds = [on(cards, link=link).seconds for link in (1.0, 10.0, 100.0, 1e4, 1e12)]
        assert seconds == sorted(seconds, reverse=True)
    steps = [on(cards) for cards in range(1, 9)]
    for fewer, more in pairwise(steps):
        assert more.computing <= fewer.computing
        assert more.muon <= fewer.muon
        assert more.gathering >= fewer.gathering
