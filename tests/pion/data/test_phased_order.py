from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.order import MixtureOrder, RowOrder
from pion.data.phased_order import MixPhase, PhasedOrder, shares_of
from pion.errors import BadInput

SEED, WINDOW, BATCH = 7, 2, 16
NAMES = ["web", "code", "qa", "books", "math", "law"]


def orders_of(shards: dict[str, list[int]]) -> dict[str, RowOrder]:
    return {name: RowOrder(rows, name, SEED, WINDOW) for name, rows in shards.items()}


@st.composite
def jobs(draw):
    """Sources, and phases that all read some of them."""
    names = NAMES[: draw(st.integers(1, 6))]
    shards = {name: draw(st.lists(st.integers(16, 90), min_size=1, max_size=5)) for name in names}
    phases, start = [], 0
    for number in range(draw(st.integers(1, 5))):
        rows = BATCH * draw(st.integers(1, 160))
        mix = None
        if number == 0 or draw(st.booleans()):
            read = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
            mix = {name: draw(st.sampled_from([1, 2, 0.5, 9])) for name in read}
            few = rows // (8 * sum(shards[read[0]]))
            if len(read) > 1 and few and draw(st.booleans()):
                mix[read[0]] = f"{few}x"
        length, other = draw(st.sampled_from([1, 1, 2, 4, 16])), draw(st.sampled_from([0, 0, 1]))
        phases.append(MixPhase(start, rows, mix, length, other))
        start += rows
    return shards, phases, start


def walked(shards, phases):
    """Return, for each row at which a row that is read begins, what is read: by counting."""
    counts, shares, found = dict.fromkeys(shards, 0), {}, {}
    for phase in phases:
        length, seed = phase.length, SEED + phase.order * 2**64
        longer = {n: [rows // length for rows in shards[n]] for n in shards}
        if phase.mix is not None:
            all_rows = {name: sum(rows) for name, rows in longer.items()}
            shares = shares_of(phase.mix, all_rows, phase.rows // length)
        names = list(shares)
        orders = [RowOrder(longer[name], name, seed, WINDOW) for name in names]
        passes = any(isinstance(share, str) for share in (phase.mix or {}).values())
        end = None if phase is phases[-1] and not passes else phase.rows // length
        mixture = MixtureOrder(orders, list(shares.values()), seed, (), end)
        begun = {name: counts[name] // length for name in names}
        given_ = Counter()
        for number in range(phase.rows // length):
            name = names[mixture.locate(number)[0]]
            shard, row = orders[names.index(name)].locate(begun[name] + given_[name])
            found[phase.start + number * length] = name, shard, row * length
            given_[name] += 1
        for name in names:
            counts[name] += given_[name] * length
    return found


@settings(max_examples=100, deadline=None)
@given(jobs())
def test_the_order_is_that_of_a_walk_that_counts(job):
    shards, phases, end = job
    order = PhasedOrder(orders_of(shards), phases, SEED)
    expected = walked(shards, phases)
    heads = [i for i in range(end) if i % order.length_at(i) == 0]
    assert heads == list(expected)
    names = list(shards)
    for i in heads:
        source, shard, row = order.locate(i)
        assert (names[source], shard, row) == expected[i]
        assert row + order.length_at(i) <= shards[names[source]][shard]
    for number, phase in enumerate(phases[:-1]):
        heads_of = range(phase.start, phase.start + phase.rows, phase.length)
        read = Counter(expected[i][0] for i in heads_of)
        for name, share in order.shares[number].items():
            assert abs(read[name] - share * phase.rows / phase.length) <= 1


def test_passes_read_a_source_so_many_times_and_shares_divide_the_rest():
    shares = shares_of({"web": 9, "code": 3, "qa": "2x"}, {"web": 1, "code": 1, "qa": 50}, 1000)
    assert shares == {"web": Fraction(27, 40), "code": Fraction(9, 40), "qa": Fraction(1, 10)}


def test_a_source_continues_where_the_phase_before_has_stopped():
    shards = {"web": [40, 40], "code": [30]}
    phases = [
        MixPhase(0, 48, {"web": 1}),
        MixPhase(48, 16, {"code": 1}),
        MixPhase(64, 32, {"web": 1}),
    ]
    order = PhasedOrder(orders_of(shards), phases, SEED)
    web = [order.locate(i)[1:] for i in [*range(48), *range(64, 96)]]
    assert sorted(web) == [(shard, row) for shard in (0, 1) for row in range(40)]


def test_after_a_change_of_length_at_most_the_rows_of_a_window_are_read_again():
    shards = {"web": [64] * 8}
    phases = [MixPhase(0, 160, {"web": 1}), MixPhase(160, 352, None, 4)]
    order = PhasedOrder(orders_of(shards), phases, SEED)
    short = {order.locate(i)[1:] for i in range(160)}
    long = [order.locate(i)[1:] for i in range(160, 512, 4)]
    assert len(set(long)) == len(long)
    again = {(s, row + k) for s, row in long for k in range(4)} & short
    assert 0 < len(again) <= WINDOW * 64


def test_another_order_reads_the_same_rows_of_a_pass_in_another_order():
    first, second = (
        PhasedOrder(orders_of({"web": [50, 50]}), [MixPhase(0, 100, {"web": 1}, 1, order)], SEED)
        for order in (0, 1)
    )
    rows = [[order.locate(i) for i in range(100)] for order in (first, second)]
    assert rows[0] != rows[1]
    assert sorted(rows[0]) == sorted(rows[1])


def test_the_shards_ahead_are_those_of_the_rows_ahead_also_beyond_a_border():
    shards = {"web": [40] * 6, "code": [40] * 3}
    phases = [MixPhase(0, 64, {"web": 1}), MixPhase(64, 64, {"code": 1}, 2)]
    order = PhasedOrder(orders_of(shards), phases, SEED)
    needed = {order.locate(i)[:2] for i in [*range(50, 64), *range(64, 128, 2)]}
    assert needed <= set(order.shards_ahead(50, 9))
    assert {source for source, _ in order.shards_ahead(64, 3)} == {1}


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ({"mix": {"web": 1, "qa": "61x"}}, "phases.0.mix: 61x qa are 1,220 rows, and the phase has "
         "1,024. At most 51x, or a longer phase"),
        ({"mix": {"web": 1, "qa": 0.0001}}, "qa has fewer than 1 row in 1,024"),
        ({"mix": {"web": 1, "qa": "0x"}}, "0x reads nothing"),
        ({"mix": {"web": 0}}, "0 reads nothing"),
        ({"mix": {"web": "four"}}, "four reads nothing: give a number above 0, or passes such as"),
        ({"mix": {"qa": 1}, "length": 32}, "qa has 20 rows, and no 32 of them follow each other"),
    ],
)  # fmt: skip
def test_a_mix_that_can_not_be_read_says_what_would_work(phase, words):
    orders = orders_of({"web": [64] * 4, "qa": [20]})
    with pytest.raises(BadInput, match=words.replace(".", r"\.")):
        PhasedOrder(orders, [MixPhase(0, 1024, **phase)], SEED)
