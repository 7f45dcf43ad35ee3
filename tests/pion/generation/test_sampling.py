"""All rows are drawn at once, and each as if it were alone: exactly, whatever its settings are."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pion
from pion.generation.candidates import BLOCK, CANDIDATES, FEW, find_by_numpy, find_by_torch
from pion.generation.sampling import Draw, Sampling, sample_rows
from pion.model.decoder import Decoder
from tests.support.operations import Operations, tensors_in
from tests.support.tiny_config import tiny_config

# More ids than candidates, and enough that these are looked for in blocks.
VOCABULARY = 2 * CANDIDATES * BLOCK + 50
PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0)


def numbers(seed):
    return torch.Generator().manual_seed(seed)


def draw(logits, samplings, seed=0):
    """Draw an id of each row. Each text has 20 ids, of which it drew 10, and its own generator."""
    draws = [
        Draw(each, each.changes(present(row), 10, logits.shape[1]), numbers(seed + row))
        for row, each in enumerate(samplings)
    ]
    return sample_rows(logits, draws)


def present(row):
    return [(7 * row + 3 * n) % 17 for n in range(20)]


def some_logits(rows, vocabulary, spread, *, rounded):
    logits = spread * torch.randn(rows, vocabulary, generator=numbers(1))
    return logits.bfloat16().float() if rounded else logits


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 50, FEW - 1, FEW, CANDIDATES, 300]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
    presence_penalty=st.sampled_from([0.0, 0.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.2, -0.4]),
)


@settings(max_examples=40, deadline=None)
@given(
    samplings=st.lists(SAMPLINGS, min_size=1, max_size=4),
    vocabulary=st.sampled_from([20, CANDIDATES + 40, VOCABULARY]),
    spread=st.sampled_from([0.5, 3.0]),
    rounded=st.booleans(),  # then many ids are equally likely
    seed=st.integers(0, 999),
)
def test_each_row_draws_what_it_would_draw_alone_from_the_whole_vocabulary(
    samplings, vocabulary, spread, rounded, seed
):
    logits = some_logits(len(samplings), vocabulary, spread, rounded=rounded)
    before = logits.clone()
    found = draw(logits, samplings, seed)
    assert torch.equal(logits, before)
    for row, each in enumerate(samplings):
        assert found[row] == draw_alone(logits[row], each, row, seed)
        if each.cuts or each.greedy or vocabulary <= CANDIDATES:
            expected = sample_before(logits[row], each, present(row), numbers(seed + row), 10)
            assert found[row] == expected


def sample_before(logits, sampling, present, randomness, given=0):
    """Draw one id from fp32 logits (vocab,) as Pion 0.1 did."""
    logits = penalized_before(logits, sampling, present, given)
    if sampling.temperature <= 0:
        return int(logits.argmax())
    logits = (logits - logits.max()).double() / sampling.temperature
    count = sampling.top_k if 0 < sampling.top_k < len(logits) else len(logits)
    least = logits.topk(count).values[-1].clamp(min=torch.finfo(logits.dtype).min)
    if sampling.min_p > 0:
        least = max(least, torch.tensor(math.log(sampling.min_p)))
    kept = (logits >= least).nonzero().squeeze(1)
    probabilities = logits[kept].softmax(dim=0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=0) - ordered
        within = order[before < sampling.top_p].sort().values
        kept, probabilities = kept[within], probabilities[within]
    cumulative = probabilities.cumsum(dim=0)
    number = torch.rand((), dtype=torch.float64, generator=randomness) * cumulative[-1]
    return int(kept[torch.searchsorted(cumulative, number, right=True).clamp(max=len(kept) - 1)])


def penalized_before(logits, sampling, present, given):
    """Return the logits with the penalties, as Pion 0.1 did."""
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(list({token for token in present if token < len(logits)})).long()
        values = logits[seen]
        penalty = torch.tensor(sampling.repetition_penalty)
        logits = logits.clone()
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.presence_penalty != 0 or sampling.frequency_penalty != 0:
        drawn = Counter(present[given:])
        ids = torch.tensor(list(drawn)).long()
        times = torch.tensor(list(drawn.values()), dtype=torch.float32)
        logits = logits.clone()
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits


def draw_alone(logits, sampling, row, seed):
    changes = sampling.changes(present(row), 10, len(logits))
    return sample_rows(logits[None], [Draw(sampling, changes, numbers(seed + row))])[0]


@pytest.mark.parametrize("spread", [0.5, 4.0])  # nearly all draws are beyond the candidates; few
def test_without_a_cut_draws_follow_the_softmax_over_the_whole_vocabulary(spread):
    logits = spread * torch.randn(1, 2000, generator=numbers(1))
    randomness, times = numbers(2), 4000
    changes = PLAIN.changes((), 0, 2000)
    rows, one = logits.expand(50, -1).contiguous(), Draw(PLAIN, changes, randomness)
    found = [token for _ in range(times // 50) for token in sample_rows(rows, [one] * 50)]
    counts = torch.bincount(torch.tensor(found), minlength=2000).double()
    # Groups of ids, the likeliest first, so that each is drawn often.
    order = logits[0].argsort(descending=True)
    expected = logits[0].double().softmax(dim=0)[order].split(125)
    for group, share in zip(counts[order].split(125), expected, strict=True):
        mean = times * share.sum()
        assert abs(group.sum() - mean) <= 4 * math.sqrt(mean) + 3


def test_a_nucleus_beyond_the_candidates_has_all_its_ids():
    sampling = Sampling(temperature=1.0, top_k=0, top_p=0.5)
    logits = torch.zeros(1, 4000)
    logits[0, ::2] = 1e-3  # these are the nucleus, and seven in eight are no candidates
    found = {draw(logits, [sampling], seed)[0] for seed in range(60)}
    assert len(found) > 50
    assert all(token is not None and token % 2 == 0 for token in found)


def test_forbidden_ids_are_not_drawn_also_where_fewer_are_allowed_than_top_k():
    allowed = torch.zeros(VOCABULARY, dtype=torch.bool)
    allowed[[5, 4000]] = True
    logits = some_logits(2, VOCABULARY, 3.0, rounded=False)
    for sampling in (Sampling(), PLAIN, Sampling(temperature=0.0)):
        changes = sampling.changes((), 0, VOCABULARY, None, allowed)
        free = sampling.changes((), 0, VOCABULARY - 100)
        for seed in range(10):
            draws = [Draw(sampling, each, numbers(seed)) for each in (changes, free)]
            bound, other = sample_rows(logits, draws)
            assert bound in (5, 4000)
            assert other == sample_rows(logits[1:], draws[1:])[0] or not sampling.greedy


def test_a_row_that_is_not_finite_is_told_and_the_others_are_drawn():
    logits = some_logits(4, VOCABULARY, 3.0, rounded=False)
    expected = draw(logits, [Sampling()] * 4)
    logits[1, 7], logits[2, 900], logits[3, -1] = math.nan, math.inf, -math.inf
    for sampling in (Sampling(), Sampling(temperature=0.0)):
        found = draw(logits, [Sampling(), sampling, sampling, sampling])
        assert found == [expected[0], None, None, None]


@pytest.mark.parametrize("find_likeliest", [find_by_numpy, find_by_torch])
def test_the_likeliest_ids_are_found_in_blocks(find_likeliest):
    logits = some_logits(3, VOCABULARY, 1.0, rounded=False)
    logits[0, -1] = logits[1, 0] = 50.0  # in the rest behind the last block, and in the first one
    values, ids = find_likeliest(logits, CANDIDATES)
    assert torch.equal(values, logits.topk(CANDIDATES, dim=1).values)
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == CANDIDATES for row in ids.tolist())


def test_the_likeliest_id_is_the_lowest_of_equals():
    logits = torch.zeros(2, VOCABULARY)
    logits[0, 700:900] = logits[1, -1] = 3.0
    assert draw(logits, [Sampling(temperature=0.0)] * 2) == [700, VOCABULARY - 1]


def test_more_texts_take_no_more_operations_on_the_vocabulary():
    model = Decoder(tiny_config(vocab_size=3000)).eval()

    def operations(texts):
        with Operations() as seen:
            new = list(pion.generate_batch(model, [[5, 6]] * texts, max_tokens=4, stop_ids=()))
        assert len(new) == 5 * texts
        shapes = [[tensor.shape for tensor in tensors_in(each[1:])] for each in seen.calls]
        return sum(any(max(shape, default=0) >= 3000 for shape in own) for own in shapes)

    assert operations(2) == operations(8)
