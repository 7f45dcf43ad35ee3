from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.order import BLOCK, MixtureOrder, Permutation, RowOrder, key_of, rank_rows, step_rows
from pion.errors import BadInput

SHARDS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)
SEEDS = st.integers(0, 2**63)
WINDOWS = st.integers(1, 15)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.binary(min_size=16, max_size=16))
def test_a_permutation_is_a_bijection_of_any_range(size, key):
    permuted = Permutation(size, key)
    assert sorted(map(permuted, range(size))) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(SHARDS, SEEDS, WINDOWS, st.integers(0, 10**6))
def test_each_epoch_visits_every_row_exactly_once(shard_rows, seed, window, epoch):
    order = RowOrder(shard_rows, "data", seed, window)
    total = sum(shard_rows)
    visited = [order.locate(i) for i in range(epoch * total, (epoch + 1) * total)]
    assert sorted(visited) == [(s, r) for s, n in enumerate(shard_rows) for r in range(n)]


@settings(max_examples=50, deadline=None)
@given(SHARDS, SEEDS, WINDOWS, st.lists(st.integers(0, 2000), min_size=1, max_size=20))
def test_a_row_is_the_same_whatever_was_asked_before(shard_rows, seed, window, asked):
    order = RowOrder(shard_rows, "data", seed, window)
    for i in asked:
        assert order.locate(i) == RowOrder(shard_rows, "data", seed, window).locate(i)


@settings(max_examples=50, deadline=None)
@given(
    SHARDS,
    SEEDS,
    WINDOWS,
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=8
    ),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 20)), max_size=3),
)
def test_the_sequence_of_rows_is_the_same_however_the_run_is_cut_and_split(
    shard_rows, seed, window, segments, skips
):
    """Segments of a run: each resumes from `next_row` alone, with its own number of steps, world
    size and micro-batch."""
    skipped = [(start, start + length) for start, length in skips]
    global_batch = 4
    next_row, trained = 0, []
    for steps, world_size, micro_batch in segments:
        order = RowOrder(shard_rows, "data", seed, window)
        for _ in range(steps):
            rows, next_row = step_rows(next_row, global_batch, skipped)
            for rank in range(world_size):
                for batch in rank_rows(rows, rank, world_size, micro_batch):
                    assert 1 <= len(batch) <= micro_batch
                    trained += [order.locate(i) for i in batch]

    unbroken = RowOrder(shard_rows, "data", seed, window)
    kept = (i for i in range(next_row) if not any(a <= i < b for a, b in skipped))
    assert trained == [unbroken.locate(i) for i in kept]
    assert len(trained) == global_batch * sum(steps for steps, _, _ in segments)


def test_epochs_seeds_data_sets_and_windows_have_orders_of_their_own():
    def rows(first=0, fingerprint="data", seed=1, window=3):
        order = RowOrder([40, 30, 50, 20], fingerprint, seed, window)
        return [order.locate(i) for i in range(first, first + 140)]

    orders = [rows(), rows(first=140), rows(fingerprint="other"), rows(seed=2), rows(window=2)]
    for i, order in enumerate(orders):
        assert order not in orders[:i]
        assert sorted(order) == sorted(orders[0])


def test_the_order_stays_the_same_for_ever():
    order = RowOrder([5, 0, 7, 4, 6], "fingerprint", 42, 2)
    assert [order.locate(i) for i in (*range(6), 21, 22, 10**12)] == [
        (0, 0),
        (2, 5),
        (2, 6),
        (2, 1),
        (2, 0),
        (0, 1),
        (3, 0),
        (2, 3),
        (2, 0),
    ]
    mixture = MixtureOrder([order, RowOrder([9], "other", 42, 1)], [0.7, 0.3], 42)
    assert [mixture.locate(i) for i in (*range(6), 1024, 10**12)] == [
        (0, 0, 0),
        (1, 0, 1),
        (0, 2, 5),
        (0, 2, 6),
        (1, 0, 3),
        (1, 0, 4),
        (0, 2, 5),
        (0, 2, 5),
    ]
    assert key_of("a", 1).hex() == "8768c0413d3d7badfbad0eda77c83aff"


def test_rows_are_well_mixed_within_a_window():
    total = 10_000
    order = Permutation(total, key_of("mixing"))
    permuted = [order(i) for i in range(total)]
    # For a random permutation: neighbours are a third of the range apart, 1 follows n once.
    distance = sum(abs(a - b) for a, b in pairwise(permuted)) / total
    assert 0.32 * total < distance < 0.35 * total
    assert sum(b == a + 1 for a, b in pairwise(permuted)) < 10
    halves = Counter((i < total // 2, row < total // 2) for i, row in enumerate(permuted))
    assert all(2300 < count < 2700 for count in halves.values())


@settings(max_examples=50, deadline=None)
@given(SHARDS, SEEDS, WINDOWS, st.integers(0, 500), st.integers(1, 15))
def test_the_shards_ahead_are_the_ones_the_next_rows_come_from(shard_rows, seed, window, i, n):
    order = RowOrder(shard_rows, "data", seed, window)
    ahead = order.shards_ahead(i, n)
    filled = sum(rows > 0 for rows in shard_rows)
    assert len(ahead) == len(set(ahead)) == min(n, filled)
    everything = order.shards_ahead(i, filled)
    assert ahead == everything[:n]
    # A reader that holds what is ahead, as many as a window has, needs nothing else at once.
    assert order.locate(i)[0] in everything[:window]
    first_needed = {shard: at for at, shard in order.needs_ahead(i, filled)}
    for j in range(i, i + sum(shard_rows)):
        assert first_needed[order.locate(j)[0]] <= j


def test_only_one_windows_shards_are_read_at_a_time():
    order = RowOrder([10] * 12, "data", 0, 3)
    for first in range(0, 240, 30):
        assert len({order.locate(i)[0] for i in range(first, first + 30)}) == 3


WEIGHTS = st.lists(st.floats(0.01, 1), min_size=2, max_size=5)


@settings(max_examples=8, deadline=None)
@given(WEIGHTS, SEEDS, st.integers(0, 10**6))
def test_a_mixture_keeps_its_quotas_in_every_block(weights, seed, block):
    orders = [RowOrder([50, 7], f"data {n}", seed, 2) for n in range(len(weights))]
    mixture = MixtureOrder(orders, weights, seed)
    drawn = Counter(mixture.locate(i)[0] for i in range(block * BLOCK, (block + 1) * BLOCK))
    for source, weight in enumerate(weights):
        exact = weight / sum(weights) * BLOCK
        assert abs(drawn[source] - exact) < 2  # each end of the block is rounded


@settings(max_examples=3, deadline=None)
@given(WEIGHTS, SEEDS, st.integers(1, 8))
def test_after_any_number_of_blocks_each_source_is_within_one_row_of_its_share_and_in_its_order(
    weights, seed, blocks
):
    orders = [RowOrder([50, 7], f"data {n}", seed, 2) for n in range(len(weights))]
    mixture = MixtureOrder(orders, weights, seed)
    drawn = {n: [] for n in range(len(weights))}
    for i in range(blocks * BLOCK):
        source, shard, row = mixture.locate(i)
        drawn[source].append((shard, row))
    for source, rows in drawn.items():
        assert abs(len(rows) - weights[source] / sum(weights) * blocks * BLOCK) < 1 + 1e-6
        assert rows == [orders[source].locate(i) for i in range(len(rows))]


def test_sources_take_turns_within_a_block():
    orders = [RowOrder([5000], name, 0, 1) for name in ("a", "b")]
    mixture = MixtureOrder(orders, [0.5, 0.5], 0)
    sources = [mixture.locate(i)[0] for i in range(BLOCK)]
    assert 400 < sum(a != b for a, b in pairwise(sources)) < 620
    assert sources != [mixture.locate(i)[0] for i in range(BLOCK, 2 * BLOCK)]


def test_a_mixture_fetches_shards_in_the_order_their_rows_are_due():
    small, large = RowOrder([100] * 4, "small", 0, 1), RowOrder([10_000] * 4, "large", 0, 1)
    mixture = MixtureOrder([small, large], [0.5, 0.5], 0)
    ahead = mixture.shards_ahead(0, 5)
    # 0.5 of the rows: a small shard is used up every 200 rows, a large one every 20,000.
    assert {source for source, _ in ahead[:2]} == {0, 1}
    assert [source for source, _ in ahead].count(0) == 4
    assert len(mixture.shards_ahead(0, 100)) == 8


@pytest.mark.parametrize(
    "weights", [[1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 0.0009]]
)
def test_weights_that_cannot_be_kept_are_refused(weights):
    orders = [RowOrder([5], name, 0, 1) for name in ("a", "b")]
    with pytest.raises(BadInput, match="data weights"):
        MixtureOrder(orders, weights, 0)


@pytest.mark.parametrize(
    ("shard_rows", "window", "why"),
    [([], 1, "no rows"), ([0, 0], 1, "no rows"), ([5], 0, "data window 0")],
)
def test_a_data_set_without_rows_or_window_is_refused(shard_rows, window, why):
    with pytest.raises(BadInput, match=why):
        RowOrder(shard_rows, "data", 0, window)


def test_skipped_ranges_are_stepped_over_however_they_overlap():
    assert step_rows(0, 4, [(5, 7), (1, 3), (2, 5)]) == ([0, 7, 8, 9], 10)
    assert step_rows(8, 2, [(0, 8)]) == ([8, 9], 10)
    assert step_rows(0, 2, [(3, 3)]) == ([0, 1], 2)


def test_ranks_share_a_step_that_does_not_divide_evenly():
    rows = list(range(10, 20))
    assert [rank_rows(rows, rank, 3, 2) for rank in range(3)] == [
        [[10, 11], [12]],
        [[13, 14], [15]],
        [[16, 17], [18, 19]],
    ]


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(BadInput, match="global_batch 3 is too small for 4 workers"):
        rank_rows([0, 1, 2], 0, 4, 1)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_mixture_of_one_source_is_the_order_of_that_source(weight):
    alone = RowOrder([40, 30, 50, 20], "data", 7, 3)
    mixture = MixtureOrder([alone], [weight], 5)
    assert [mixture.locate(i) for i in range(3000)] == [(0, *alone.locate(i)) for i in range(3000)]
    assert mixture.shards_ahead(1100, 4) == [(0, shard) for shard in alone.shards_ahead(1100, 4)]
