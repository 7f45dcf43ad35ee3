"""A server that drafts gives the same answers, and counts what was guessed right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.models.find import find_model
from tests.support.finished_run import make_run
from tests.support.served import Served, serving

ASKED: dict[str, Any] = {
    "prompt": "Return a new header. Return a new header. Return a",
    "max_tokens": 40,
    "seed": 4,
    "temperature": 0.2,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """The same model with a draft block, served without and with drafts."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, draft={"steps": 2})
    found = {"m": find_model(str(folder / "demo"))}
    with serving(found) as plain, serving(found, drafts=4, slots=3) as drafting:
        yield [plain, drafting]


def test_drafts_change_no_answer_and_are_counted(both: list[Served]) -> None:
    plain, drafting = (
        served.client().completions.create(model="m", n=2, **ASKED) for served in both
    )
    assert [choice.text for choice in plain.choices] == [c.text for c in drafting.choices]
    assert plain.usage is not None
    assert drafting.usage is not None
    assert plain.usage.completion_tokens_details is None
    details = drafting.usage.completion_tokens_details
    timings: Any = (drafting.model_extra or {})["timings"]
    assert details is not None
    accepted = details.accepted_prediction_tokens
    assert accepted == timings["draft_n_accepted"]
    assert accepted is not None
    assert 0 < accepted <= drafting.usage.completion_tokens - 2  # never a text's first token
    assert details.rejected_prediction_tokens == timings["draft_n"] - accepted
    assert drafting.usage.completion_tokens == 80


def test_a_prompt_that_was_read_before_is_drafted_the_same(both: list[Served]) -> None:
    texts, cached = [], []
    for served in both:
        for _ in range(2):
            found = served.client().completions.create(model="m", **ASKED)
            texts.append(found.choices[0].text)
        assert found.usage is not None
        details = found.usage.prompt_tokens_details
        assert details is not None
        cached.append(details.cached_tokens)
    assert len(set(texts)) == 1
    assert min(count or 0 for count in cached) > 0


def test_a_prompt_beyond_the_context_is_refused_and_the_next_one_is_answered(
    both: list[Served],
) -> None:
    from openai import BadRequestError

    for served in both:
        client = served.client()
        before = client.completions.create(model="m", **ASKED).choices[0].text
        long = ASKED | {"prompt": ASKED["prompt"] + before + " header" * 3000}
        with pytest.raises(BadRequestError, match="context"):
            client.completions.create(model="m", **long)
        assert client.completions.create(model="m", **ASKED).choices[0].text == before
