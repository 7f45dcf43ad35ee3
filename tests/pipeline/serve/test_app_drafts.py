"""A server that drafts gives the same answers, and counts what was guessed right."""

import pytest

from pion.generation import drafts
from pion.model.decoder import Decoder
from pion.model.draft_block import block_of
from pipeline.models.drafts import drafts_of
from pipeline.models.find import find_model
from tests.support.finished_run import make_run
from tests.support.served import serving
from tests.support.tiny_config import tiny_config

ASKED = {
    "prompt": "Return a new header. Return a new header. Return a",
    "max_tokens": 40,
    "seed": 4,
    "temperature": 0.2,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same model with a draft block, served without and with drafts."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, draft={"steps": 2}, seq_len=256)
    found = {"m": find_model(str(folder / "demo"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts, "best_number", as_many_as_possible)
        with serving(found) as plain, serving(found, drafts=4, slots=3) as drafting:
            yield [plain, drafting]


def as_many_as_possible(texts, token, guess):
    """Draft also what is not expected to pay, so that much is guessed wrong, too."""
    return max(text.most for text in texts)


def test_drafts_change_no_answer_and_are_counted(both):
    plain, drafting = (
        served.client().completions.create(model="m", n=2, **ASKED) for served in both
    )
    assert [choice.text for choice in plain.choices] == [c.text for c in drafting.choices]
    assert plain.usage.completion_tokens_details is None
    details = drafting.usage.completion_tokens_details
    timings = (drafting.model_extra or {})["timings"]
    accepted = details.accepted_prediction_tokens
    assert accepted == timings["draft_n_accepted"]
    assert 0 < accepted <= drafting.usage.completion_tokens - 2  # never a text's first token
    assert details.rejected_prediction_tokens == timings["draft_n"] - accepted
    assert drafting.usage.completion_tokens == 80


def test_a_prompt_that_was_read_before_is_drafted_the_same(both):
    texts, cached = [], []
    for served in both:
        for _ in range(2):
            found = served.client().completions.create(model="m", **ASKED)
            texts.append(found.choices[0].text)
        cached.append(found.usage.prompt_tokens_details.cached_tokens)
    assert len(set(texts)) == 1
    assert min(count or 0 for count in cached) > 0


def test_a_stream_counts_the_guesses_of_all_its_answers(both):
    texts, counts = [], []
    for served in both:
        asked = ASKED | {"n": 3, "stream": True, "stream_options": {"include_usage": True}}
        found = ["", "", ""]
        for chunk in served.client().completions.create(model="m", **asked):
            for choice in chunk.choices:
                found[choice.index] += choice.text
        assert chunk.choices == []  # the last chunk has the usage alone
        texts.append(found)
        counts.append(chunk.usage)
    assert texts[0] == texts[1]
    assert counts[0].completion_tokens_details is None
    details = counts[1].completion_tokens_details
    assert 0 < details.accepted_prediction_tokens <= counts[1].completion_tokens - 3
    assert details.rejected_prediction_tokens > 0


def test_an_answer_that_a_stop_string_ends_has_no_guesses_beyond_it(both):
    plain, drafting = (served.client().completions for served in both)
    whole = plain.create(model="m", **ASKED).choices[0].text
    assert len(whole) > 40
    for begin in range(0, len(whole) - 3, len(whole) // 6):
        asked = ASKED | {"stop": [whole[begin : begin + 3]]}
        one, other = plain.create(model="m", **asked), drafting.create(model="m", **asked)
        assert one.choices[0].text == other.choices[0].text
        assert one.choices[0].finish_reason == other.choices[0].finish_reason == "stop"
        assert one.usage.completion_tokens == other.usage.completion_tokens
        details = other.usage.completion_tokens_details
        accepted = 0 if details is None else details.accepted_prediction_tokens
        assert accepted <= max(0, other.usage.completion_tokens - 1)


FORMAT = {
    "schema": {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 9}
        },
        "required": ["tags"],
        "additionalProperties": False,
    }
}


@pytest.mark.parametrize(
    ("temperature", "more"),
    [
        (0.7, {"logprobs": True, "top_logprobs": 3, "extra_body": {"ignore_eos": True}}),
        (0, {"extra_body": {"repetition_penalty": 1.2, "ignore_eos": True}}),
        (0.7, {"presence_penalty": 0.5, "frequency_penalty": 0.2, "logit_bias": {"40": 3}}),
        (0, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", **FORMAT}}}),
    ],
    ids=["logprobs", "repetition", "penalties", "schema"],
)
@pytest.mark.parametrize("swapped", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_every_setting_gives_the_same_answer(both, temperature, more, swapped):
    said = []
    chances = []
    for served in both:
        found = served.client().chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "red blue red blue red blue red"}],
            max_tokens=60,
            seed=5,
            n=2,
            temperature=0.7 - temperature if swapped else temperature,
            **more,
        )
        said.append([choice.message.content for choice in found.choices])
        chances.append(
            [
                likeliest.logprob
                for choice in found.choices
                if choice.logprobs is not None
                for token in choice.logprobs.content or ()
                for likeliest in (token, *token.top_logprobs)
            ]
        )
    assert said[0] == said[1]
    assert chances[0] == pytest.approx(chances[1], abs=1e-4)
    assert bool(chances[0]) == ("logprobs" in more)
    assert found.usage.completion_tokens_details is not None  # something was guessed


def test_models_with_and_without_a_block_are_served_together(tmp_path, both):
    make_run(tmp_path, draft={"steps": 2}, seq_len=256)
    make_run(tmp_path, "plain", seq_len=256)
    found = {name: find_model(str(tmp_path / name)) for name in ("demo", "plain")}
    with serving(found, drafts="auto", slots=3) as served:
        texts = {
            name: served.client().completions.create(model=name, **ASKED).choices[0].text
            for name in found
        }
        blocks = [block_of(model.model) is not None for model in served.models]
    assert sorted(blocks) == [False, True]
    # The draws of both are the same: a block changes nothing, and neither do drafts.
    assert texts["demo"] == both[0].client().completions.create(model="m", **ASKED).choices[0].text


@pytest.mark.parametrize(
    ("asked", "with_block", "without"), [("off", 0, 0), ("auto", 3, 4), (1, 1, 1), (16, 16, 16)]
)
def test_each_model_has_its_number_of_drafts(asked, with_block, without):
    models = [Decoder(tiny_config(draft=draft)) for draft in ({}, None)]
    assert [drafts_of(asked, model) for model in models] == [with_block, without]
