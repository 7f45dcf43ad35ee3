"""Numbers that fp32 can't compute with are refused wherever a user can set them."""

import json

import pytest
import torch

from pion.errors import BadInput
from pion.formats.gguf.vocabulary import sampling as gguf_sampling
from pion.generation.bounds import BOUNDS, published_sampling
from pion.generation.sampling import sample
from pion.generation.text import Settings
from pipeline.commands.sampling import convert
from pipeline.serve.requests import CompletionRequest

WRONG = [
    ("temperature", 1e-320),
    ("temperature", 1e30),
    ("top_k", 10**299),
    ("top_p", 1e-320),
    ("repetition_penalty", 1e-300),
    ("repetition_penalty", 1e300),
    ("max_tokens", 10**299),
    ("seed", 10**299),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_number_outside_its_bounds_is_refused_with_its_name_and_bounds(name, value, tmp_path):
    given = {name: value}
    with pytest.raises(BadInput, match=f"{name} is .* it must be .*from"):
        Settings(stop_ids=(), **given)
    with pytest.raises(ValueError, match=rf"{name} is .* it must be .*from"):
        CompletionRequest.model_validate({"prompt": "x", **given})
    with pytest.raises(BadInput, match=f"{name.replace('_', ' ')} must be .*from"):
        convert(name, str(value))
    if name in ("max_tokens", "seed"):
        return
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    for read in (
        lambda: published_sampling(tmp_path / "generation_config.json"),
        lambda: gguf_sampling(tmp_path),
    ):
        with pytest.raises(BadInput, match=rf"_config.json: {name} is .* it must be .*from"):
            read()


@pytest.mark.parametrize("text", ['{"top_k": true}', '{"top_p": "0.9"}', '{"top_k": 50.5}'])
def test_a_published_setting_is_a_number_of_its_kind(text, tmp_path):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(BadInput, match=r"_config.json: top_. is .* it must be"):
        published_sampling(tmp_path / "generation_config.json")


def test_a_published_model_that_is_not_sampled_is_greedy(tmp_path):
    assert published_sampling(tmp_path / "none.json") == {}
    (tmp_path / "some.json").write_text('{"do_sample": false, "temperature": 0.6, "top_k": null}')
    assert published_sampling(tmp_path / "some.json") == {"temperature": 0.0}


@pytest.mark.parametrize("edge", ["least", "most"])
@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "repetition_penalty"])
def test_a_token_is_drawn_at_the_edge_of_each_bound(name, edge):
    settings = Settings(stop_ids=(), **{name: getattr(BOUNDS[name], edge)})
    logits = torch.tensor([-1e30, 1e30, 0.5, -0.5])
    assert 0 <= sample(logits, settings, [0, 1, 2], torch.Generator().manual_seed(0)) < 4
