"""What a model gives for held-out answers is what it gives for each of them alone."""

import numpy as np
import pytest
import torch

from pion.errors import BadInput, Interrupted
from pion.train.held_out_answers import read_answers, sums_of_answers
from tests.support.pair_rows import CONFIG, Pair, PairRows, random_pairs
from tests.support.tiny_config import drawn

ROWS = random_pairs(6, seed=5)
PAIRS = [pair for row in ROWS for pair in row]


def alone(decoder, prompt, answer):
    """Return the log-probability of an answer after its prompt, without rows, masks or padding."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        log_probs = decoder(ids).double().log_softmax(dim=-1)[0]
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return float(sum(log_probs[place, ids[0, place + 1]] for place in places))


@pytest.mark.parametrize("micro_batch", [1, 4, 16])
def test_each_sum_is_that_of_the_answer_alone(micro_batch):
    decoder = drawn(CONFIG, 1)
    found = sums_of_answers(
        decoder, PairRows(ROWS).as_stream(), range(6), micro_batch, torch.float32
    )
    sides = [(pair.prompt, answer) for pair in PAIRS for answer in (pair.chosen, pair.rejected)]
    expected = [alone(decoder, *side) for side in sides]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_answers_have_their_lengths_sides_prompts_and_references_in_the_order_of_the_sums():
    read = read_answers(PairRows(ROWS).as_stream(), range(6), paired=True)
    lengths = [n for pair in PAIRS for n in (len(pair.chosen), len(pair.rejected))]
    assert read.labels.tokens.tolist() == lengths
    assert read.labels.preferred.tolist() == [True, False] * len(PAIRS)
    assert read.reference.tolist() == [number for pair in PAIRS for number in pair.reference]
    prompts = [read.prompts[number] for number in read.labels.prompts]
    assert prompts == [pair.prompt for pair in PAIRS for _ in "wl"]


def test_pairs_of_one_prompt_share_its_number_across_rows():
    first, second = Pair([3, 4], [5], [6], (-1, -1)), Pair([3], [4], [6], (-1, -1))
    again = first._replace(chosen=[7, 8])
    stream = PairRows([[first, second], [again]]).as_stream()
    read = read_answers(stream, range(2), paired=True)
    assert read.labels.prompts.tolist() == [0, 0, 1, 1, 0, 0]
    assert read.prompts == [[3, 4], [3]]


def test_only_the_rows_that_are_asked_for_are_read():
    read = read_answers(PairRows(ROWS).as_stream(), range(2), paired=True)
    assert read.labels.items == len(ROWS[0]) + len(ROWS[1])
    with pytest.raises(BadInput, match=r"raise prefer\.held_out"):
        read_answers(PairRows(ROWS).as_stream(), range(0), paired=True)


def test_a_measurement_ends_where_it_is_told_to_and_leaves_the_model_in_its_mode():
    decoder, batches = drawn(CONFIG, 1).train(), []

    def stop():
        batches.append(1)
        if len(batches) == 2:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        sums_of_answers(decoder, PairRows(ROWS).as_stream(), range(6), 1, torch.float32, stop)
    assert len(batches) == 2
    assert decoder.training
