"""Answers are drawn as the model predicts, by numbers that depend on row and answer alone."""

import numpy as np
import pytest
import torch

from pion.bench.models import check_model, scrambled
from pion.config.presets import FAMILIES
from pion.errors import BadInput
from pion.generation.rollouts import Prompt, RolloutSettings, Sampler, draw, uniform_numbers
from pion.model.decoder import Decoder

IDS, MAX_TOKENS, ANSWERS = 60, 12, 3
STOPS = frozenset(range(0, IDS, 9))
PROMPTS = [Prompt(row, [(5 * row + place) % IDS for place in range(1 + 3 * row)]) for row in (4, 0)]


def sampler(model, *, rows=64, longest=13, **changes):
    fields = {
        "answers": ANSWERS,
        "max_tokens": MAX_TOKENS,
        "stop_ids": STOPS,
        "vocab_size": IDS,
        "seed": 1,
    }
    return Sampler(model, RolloutSettings(**fields | changes), rows=rows, longest=longest)


def model_of(family) -> Decoder:
    return scrambled(check_model(family, tiny=True)).eval()


@pytest.fixture(scope="module")
def model():
    return model_of("pion")


def ids_of(groups):
    return [[answer.ids for answer in group] for group in groups]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_has_the_probability_that_a_whole_pass_gives(family):
    model = model_of(family)
    for prompt, group in zip(PROMPTS, sampler(model).sample(PROMPTS), strict=True):
        for answer in group:
            ids = torch.tensor([[*prompt.ids, *answer.ids]])
            with torch.no_grad():
                every = model(ids[:, :-1])[0].log_softmax(-1)
            after = every[len(prompt.ids) - 1 :]
            expected = after.gather(1, torch.tensor(answer.ids)[:, None])[:, 0].tolist()
            assert answer.log_probs == pytest.approx(expected, abs=1e-4)


def test_an_answer_ends_with_a_stop_id_or_has_as_many_tokens_as_it_may(model):
    answers = [answer for group in sampler(model, answers=16).sample(PROMPTS) for answer in group]
    assert {answer.finished for answer in answers} == {True, False}
    for answer in answers:
        assert not STOPS & {*answer.ids[:-1]}
        assert answer.finished == (answer.ids[-1] in STOPS)
        assert answer.finished or len(answer.ids) == MAX_TOKENS


def test_what_is_sampled_does_not_depend_on_what_is_sampled_with_it(model):
    together = ids_of(sampler(model).sample(PROMPTS))
    assert ids_of(sampler(model, rows=1).sample(PROMPTS)) == together
    assert ids_of(sampler(model).sample(PROMPTS[::-1])) == together[::-1]
    again = sampler(model)
    again.sample([Prompt(9, [1, 2])])
    assert ids_of(again.sample(PROMPTS)) == together


def test_another_row_answer_or_seed_draws_other_tokens(model):
    (group,) = ids_of(sampler(model).sample([Prompt(4, [7])]))
    assert len({*map(tuple, group)}) == ANSWERS
    assert ids_of(sampler(model).sample([Prompt(5, [7])])) != [group]
    assert ids_of(sampler(model, seed=2).sample([Prompt(4, [7])])) != [group]


def test_numbers_are_uniform_and_the_first_ones_of_a_longer_answer():
    numbers = uniform_numbers(0, 3, 1, 4000)
    assert numbers[:5].tolist() == uniform_numbers(0, 3, 1, 5).tolist()
    assert numbers.tolist() != uniform_numbers(0, 3, 2, 4000).tolist()
    assert 0 <= numbers.min() < 0.01 < 0.99 < numbers.max() < 1
    assert np.histogram(numbers, 10, (0, 1))[0].tolist() == pytest.approx([400] * 10, abs=80)


@pytest.mark.parametrize("count", [3, 256, 700])
def test_an_id_is_where_the_cumulative_probability_reaches_the_number(count):
    logits = torch.randn(1, count + 5, generator=torch.Generator().manual_seed(count))
    shares = logits[0, :count].double().softmax(0).numpy()
    numbers = torch.linspace(0, 1, 999, dtype=torch.float64)[:-1]
    found = draw(logits.expand(len(numbers), -1), numbers, count)
    expected = np.searchsorted(shares.cumsum(), numbers.numpy(), side="right")
    assert (found[:, 0].numpy() != expected).sum() <= 1  # at a border, by rounding
    whole = logits[0].log_softmax(0)[found[:, 0].long()]
    assert torch.allclose(found[:, 1].float(), whole)


def test_an_id_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 2.0, -torch.inf, 1.0, -torch.inf]])
    numbers = torch.tensor([0.0, 0.5, 0.9999999999999999], dtype=torch.float64)
    assert draw(logits.expand(3, -1), numbers, 5)[:, 0].tolist() == [1, 1, 3]


def test_a_damaged_model_and_too_long_answers_are_refused(model):
    with pytest.raises(BadInput, match="lower max_tokens"):
        sampler(model, max_tokens=model.config.seq_len)
    broken = model_of("pion")
    broken.norm.weight.data.fill_(torch.nan)
    with pytest.raises(BadInput, match="predicts NaN"):
        sampler(broken).sample(PROMPTS)
