"""Generation: which tokens are drawn, when it ends, what it does not change, what it refuses."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pion
import pion.model.attention.attention as attention_module
import pion.model.forward_pass as forward_pass_module
import pion.model.slot_vectors as slot_vectors_module
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.generation import decoding
from pion.generation.generate import stream_text
from pion.generation.sampling import Draw, Sampling, sample, sample_rows
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

TEXT = "naïve café, 日本語 🌍 done"
CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["plain words only"], 262)


@pytest.fixture(scope="module")
def memorised(tokenizer):
    """Return a model that has memorized one text and its end, and the text's ids."""
    torch.manual_seed(0)
    # Eight embedding rows more than the tokenizer has ids.
    config = tiny_config(d_model=48, d_ff=64, vocab_size=tokenizer.vocab_size + 8, seq_len=CONTEXT)
    model = Decoder(config)
    end = tokenizer.end_of_text
    ids = tokenizer.encode(TEXT)
    tokens = torch.tensor([[end, *ids], [*ids, end]])
    targets = torch.tensor([[*ids, end], [*ids[1:], end, -100]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model.loss(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    return model


@pytest.fixture(scope="module")
def untrained(memorised):
    torch.manual_seed(1)
    return Decoder(memorised.config)


def test_greedy_generation_says_what_the_model_memorised_and_stops_at_its_end(memorised, tokenizer):
    start, end = tokenizer.encode("naïve"), tokenizer.end_of_text
    continued = list(pion.generate(memorised, start, temperature=0, stop_ids=[end]))
    assert tokenizer.decode(start + continued) == TEXT


@given(st.text())
def test_streamed_pieces_join_to_the_text(tokenizer, text):
    assert "".join(stream_text(tokenizer, tokenizer.encode(text))) == text


def test_bytes_that_never_become_a_character_are_shown_at_the_end(tokenizer):
    half = tokenizer.encode("🌍")[:2]
    assert next(stream_text(tokenizer, [*tokenizer.encode("a"), *half])) == "a"
    assert "".join(stream_text(tokenizer, half)).strip("\ufffd") == ""
    assert "".join(stream_text(tokenizer, half)) != ""


def test_a_seed_repeats_its_draws_and_another_does_not(untrained):
    def draw(seed):
        return list(pion.generate(untrained, [5], seed=seed, stop_ids=(), max_tokens=30))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_global_randomness_mode_and_gradients_stay_the_callers(untrained):
    untrained.train()
    state = torch.get_rng_state()
    tokens = pion.generate(untrained, [5], max_tokens=3, stop_ids=())
    next(tokens)
    assert untrained.training
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    list(tokens)
    assert torch.equal(torch.get_rng_state(), state)


def test_ids_the_tokenizer_lacks_are_never_drawn(untrained, tokenizer):
    # Their rows are made the likeliest by far.
    model = Decoder.from_state(untrained.config, untrained.state_dict())
    with torch.no_grad():
        model.embed.weight[tokenizer.vocab_size :] = 100 * model.hidden(torch.tensor([[5]]))[0, -1]
    assert max(pion.generate(model, [5], max_tokens=1, stop_ids=())) >= tokenizer.vocab_size
    drawn = pion.generate(
        model, [5], max_tokens=40, temperature=5.0, vocab_size=tokenizer.vocab_size, stop_ids=()
    )
    assert max(drawn) < tokenizer.vocab_size


def test_generation_ends_after_max_tokens_or_where_the_context_ends(untrained):
    def length(prompt, max_tokens):
        return len(list(pion.generate(untrained, prompt, max_tokens=max_tokens, stop_ids=())))

    assert length([5], 0) == 0
    assert length([5], 7) == 7
    assert length([5] * 60, 100) == CONTEXT - 60
    assert length([5] * CONTEXT, 100) == 0


def test_any_stop_id_ends_generation_and_is_not_yielded(memorised, tokenizer):
    (comma,) = tokenizer.encode(",")
    until = list(pion.generate(memorised, [0], temperature=0, stop_ids=(0, comma)))
    assert tokenizer.decode(until) == "naïve café"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"min_p": 1.1}, "min_p is 1.1; it must be from 0 to 1"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; it must be from -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"logit_bias": {5: 101}}, "logit_bias is 101; it must be from -100 to 100"),
        ({"logit_bias": {10**6: 1}}, "logit_bias has the id 1000000; the tokenizer's are from 0"),
        ({"vocab_size": 10_000}, "vocab_size is 10000"),
        ({"ids": [5] * 65}, "65 tokens, but the model's context is 64"),
        ({"ids": [100_000]}, "outside 0 … "),
        ({"ids": [-1]}, "outside 0 … "),
        ({"ids": []}, "the prompt is empty"),
    ],
)
def test_senseless_requests_are_refused_by_the_call_itself(untrained, settings, message):
    with pytest.raises(BadInput, match=message):
        pion.generate(untrained, settings.pop("ids", [5]), stop_ids=(), **settings)


LOGITS = st.lists(st.integers(-40, 40), min_size=2, max_size=12)


def drawn_ids(logits, sampling, present=(), draws=150):
    randomness = torch.Generator().manual_seed(0)
    values = torch.tensor(logits, dtype=torch.float32) / 10
    return {sample(values, sampling, present, randomness) for _ in range(draws)}


@pytest.mark.parametrize("top_k", [0, 3, 50])
@pytest.mark.parametrize("number", [0.0, 1.0])  # which `rand` may return after rounding
def test_a_forbidden_id_is_never_drawn(top_k, number, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(number, dtype=torch.float64))
    logits = torch.tensor([[2.0, 1.0, 3.0, 0.0, 1.0]])
    allowed = torch.tensor([False, True, False, True, False])
    for top_p in (0.99, 1.0):
        sampling = Sampling(1.0, top_k, top_p)
        changes = sampling.changes((), 0, 5, None, allowed)
        (token,) = sample_rows(logits, [Draw(sampling, changes, torch.Generator())])
        assert token == (1 if number == 0 else 3)


def test_a_draw_takes_one_number_however_many_ids_remain():
    numbers, ours = (torch.Generator().manual_seed(3) for _ in range(2))
    for drawn in itertools.product((0.5, 1.0), (0, 1, 3), (0.3, 0.9, 1.0)):
        sample(torch.tensor([1.0, 0.5, 1.0, -3.0]), Sampling(*drawn), (), ours)
        torch.rand((), dtype=torch.float64, generator=numbers)
        assert torch.equal(numbers.get_state(), ours.get_state())


def test_rounding_does_not_exchange_ids_that_are_as_likely():
    """The logits of a text differ by rounding in a batch; its draws must not."""
    alone, batched = (torch.Generator().manual_seed(3) for _ in range(2))
    logits = torch.tensor([1.0, 0.5, 1.0, 0.5, 1.0])
    noise = torch.tensor([-1.0, 1.0, 1.0, -1.0, 0.0]) * 1e-6
    for _ in range(50):
        token = sample(logits, Sampling(1.0, 0, 1.0), (), alone)
        assert sample(logits + noise, Sampling(1.0, 0, 1.0), (), batched) == token


@settings(max_examples=60, deadline=None)
@given(
    logits=LOGITS,
    min_p=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_min_p_leaves_out_what_transformers_leaves_out(logits, min_p, temperature):
    from transformers import MinPLogitsWarper

    scores = torch.tensor([logits], dtype=torch.float64) / 10 / temperature
    left = MinPLogitsWarper(min_p)(None, scores)[0].isfinite().nonzero().flatten().tolist()
    drawn = drawn_ids(logits, Sampling(temperature, 0, 1.0, min_p=min_p), draws=40)
    # Rounding decides about an id exactly at the bound.
    share = (scores[0] - scores.max()).exp()
    assert drawn <= {*left} | {i for i in range(len(logits)) if abs(share[i] - min_p) < 1e-6}
    assert min_p < 1 or drawn <= {i for i, logit in enumerate(logits) if logit == max(logits)}


def test_a_bias_forces_or_forbids_an_id_before_anything_else(untrained):
    def ids(**more):
        return list(pion.generate(untrained, [5, 6], stop_ids=(), max_tokens=6, **more))

    assert ids(logit_bias={7: 100}, seed=1) == [7] * 6
    free = ids(temperature=0)
    assert free[0] not in ids(temperature=0, logit_bias={free[0]: -100})
    assert ids(temperature=0, logit_bias={free[0]: 0.0}) == free
    assert ids(temperature=0, logit_bias={7: 100}, presence_penalty=2) == [7] * 6


def test_penalties_and_biases_in_a_batch_give_what_the_text_alone_gives(untrained):
    prompts = [[5, 6, 5], [9], [5, 5, 5, 5, 7]]
    more = {"stop_ids": (), "max_tokens": 12, "seed": 3, "min_p": 0.02, "logit_bias": {4: 3.0}}
    more |= {"presence_penalty": 0.7, "frequency_penalty": -0.4, "repetition_penalty": 1.1}
    together = [[] for _ in prompts]
    for number, token in pion.generate_batch(untrained, prompts, rows=2, **more):
        if token is not None:
            together[number].append(token)
    assert together == [list(pion.generate(untrained, ids, **more)) for ids in prompts]


def test_a_tiny_temperature_is_greedy_not_a_crash():
    for logits in itertools.permutations([10, 20, 30]):
        assert drawn_ids(list(logits), Sampling(1e-30, 0, 1.0), draws=3) == {logits.index(30)}


# ---------------------------------------------------------------- long prompts


MASKED = {
    "softcap": {"softcap": 5.0},
    "windows": {"windows": {"tokens": 16, "block": 8}},
    "slots": {"slots": {"per_segment": 2, "segment": 8, "window": 2}},
}


@pytest.fixture(params=MASKED)
def masked(request):
    torch.manual_seed(2)
    return Decoder(tiny_config(seq_len=CONTEXT, **MASKED[request.param]))


def greedy(model, prompt):
    return list(pion.generate(model, prompt, temperature=0, stop_ids=(), max_tokens=12))


@pytest.mark.parametrize("length", [1, 8, 9, 16, 40])
def test_a_prompt_read_in_pieces_is_continued_as_one_read_at_once(masked, monkeypatch, length):
    prompt = torch.randint(0, 64, (length,), generator=torch.Generator().manual_seed(length))
    at_once = greedy(masked, prompt.tolist())
    monkeypatch.setattr(decoding, "PROMPT_PIECE", 8)
    widths, cache_tokens = [], decoding.cache_tokens

    def counted(model, rows, *others):
        widths.append(len(rows[0]))
        return cache_tokens(model, rows, *others)

    monkeypatch.setattr(decoding, "cache_tokens", counted)
    assert greedy(masked, prompt.tolist()) == at_once
    assert max(widths) <= 8


def test_a_prompt_is_never_compiled(masked, monkeypatch):
    """Flex attention is compiled for each length, which takes seconds."""

    def compile_flex_attention():
        raise AssertionError("flex attention was asked for")

    for module in (forward_pass_module, slot_vectors_module):
        monkeypatch.setattr(module, "flexible", lambda config, device: True)
    monkeypatch.setattr(attention_module, "_flex_attention", compile_flex_attention)
    assert len(greedy(masked, list(range(40)))) == 12
    tokens = torch.zeros(1, CONTEXT, dtype=torch.int64)
    with pytest.raises(AssertionError, match="was asked for"):
        masked.loss(tokens, tokens)
