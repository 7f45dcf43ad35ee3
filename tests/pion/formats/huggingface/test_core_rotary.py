"""Rotary settings in the spellings of transformers 4 and 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pion.config.parts import RopeScaling
from pion.errors import BadInput
from pion.formats.huggingface.core import read_rotary, rotary_settings
from pion.formats.load import load_decoder
from tests.support.stock_models import LLAMA3, apart, saved, stock_model, tokens
from tests.support.tiny_config import tiny_config

SCALING = RopeScaling(factor=8.0, original_max_position_embeddings=256)
CONTEXT = {"max_position_embeddings": 512}
NEW_LLAMA3 = {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}
OLD_LLAMA3 = {"rope_scaling": LLAMA3, "rope_theta": 5e5}
OLDER_LLAMA3 = OLD_LLAMA3 | {
    "rope_scaling": {"type": "llama3"} | {n: v for n, v in LLAMA3.items() if n != "rope_type"}
}


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({}, 1e4, None),
        ({"rope_theta": 130_000}, 130_000, None),
        ({"rope_theta": 1e5, "rope_scaling": None}, 1e5, None),
        ({"rope_theta": 1e5, "rope_parameters": None, "rope_scaling": {}}, 1e5, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, None),
        ({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e5}, 1e6, None),
        ({"rope_scaling": {"type": "default", "factor": 2.0}, "rope_theta": 1e5}, 1e5, None),
        (NEW_LLAMA3, 5e5, SCALING),
        (OLD_LLAMA3, 5e5, SCALING),
        (OLDER_LLAMA3, 5e5, SCALING),
        (OLD_LLAMA3 | {"rope_parameters": {"rope_theta": 1e6}}, 5e5, SCALING),
    ],
)
def test_both_spellings_are_read(
    fields: dict[str, Any], theta: float, scaling: RopeScaling | None
) -> None:
    read = read_rotary(CONTEXT | fields)
    assert (read["rope_theta"], read.get("rope_scaling")) == (theta, scaling)


def test_the_original_context_is_the_whole_one_where_none_is_given() -> None:
    without = {n: v for n, v in LLAMA3.items() if n != "original_max_position_embeddings"}
    for fields, original in (({}, 512), ({"original_max_position_embeddings": 128}, 128)):
        read = read_rotary(CONTEXT | {"rope_parameters": without} | fields)
        assert read["rope_scaling"].original_max_position_embeddings == original


@pytest.mark.parametrize("spelling", [NEW_LLAMA3, OLD_LLAMA3, OLDER_LLAMA3])
def test_each_spelling_is_what_transformers_makes_of_it(
    spelling: dict[str, Any], tmp_path: Path
) -> None:
    """transformers reads the folder too, so that a spelling that it does not know would show."""
    import transformers

    absent = {"rope_parameters": None, "rope_theta": None, "rope_scaling": None}
    saved(stock_model("Llama 3.2"), tmp_path, **absent | spelling)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert apart(load_decoder(tmp_path), theirs, tokens(600)) <= 1e-4
    theirs = stock_model("Llama 3.2", rope_scaling=None)
    assert apart(load_decoder(tmp_path), theirs, tokens(600)) > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'; only 'defa"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type is 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_parameters": {"rope_type": ["llama3"]}}, r"rope_type is \['llama3'\]"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "need low_freq_factor, high"),
        ({"rope_parameters": "llama3"}, "rope_parameters is 'llama3'; it must be an object"),
        ({"rope_scaling": 8.0}, "rope_scaling is 8.0; it must be an object"),
        ({"rope_scaling": 0}, "rope_scaling is 0; it must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1 is supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters has settings for 'full_attention' alone",
        ),
        ({"rope_parameters": LLAMA3 | {"factor": 0.5}}, "factor is 0.5; it must be at least 1"),
        ({"rope_parameters": LLAMA3 | {"factor": "8"}}, "rope_scaling.factor is '8'"),
    ],
)
def test_positions_that_we_do_not_compute_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_rotary(CONTEXT | fields)


def test_what_is_not_the_default_is_written_in_both_spellings() -> None:
    assert rotary_settings(tiny_config()) == {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}
    }
    theta = rotary_settings(tiny_config(rope_theta=1e6))
    assert theta["rope_theta"] == theta["rope_parameters"]["rope_theta"] == 1e6
    written = rotary_settings(tiny_config(rope_theta=5e5, rope_scaling=SCALING))
    assert written == NEW_LLAMA3 | OLD_LLAMA3
    for spelling in ("rope_parameters", "rope_scaling"):
        one = {name: value for name, value in written.items() if name != spelling}
        assert read_rotary(CONTEXT | one) == {"rope_theta": 5e5, "rope_scaling": SCALING}
