"""Settings that no scaling of rotary positions can have are refused."""

import math

import pytest

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from tests.support.tiny_config import tiny_config

SCALING = {"factor": 8.0, "original_max_position_embeddings": 8192}


def test_the_factors_are_those_of_llama_3_1_unless_they_are_given():
    config = tiny_config(rope_scaling=SCALING)
    assert (config.rope_scaling.low_freq_factor, config.rope_scaling.high_freq_factor) == (1, 4)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "rope_scaling" not in tiny_config().to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 0}, "rope_scaling.factor is 0; it must be a number above 0"),
        ({"factor": 0.99}, "rope_scaling.factor is 0.99; it must be at least 1"),
        ({"factor": -8.0}, "factor is -8.0; it must be a number above 0"),
        ({"factor": math.nan}, "factor is nan; it must be a number above 0"),
        ({"factor": math.inf}, "factor is inf; it must be a number above 0"),
        ({"factor": True}, "factor is True; it must be a number above 0"),
        ({"low_freq_factor": 4.0}, "high_freq_factor 4.0 must be above .*low_freq_factor 4.0"),
        ({"high_freq_factor": 0.5}, "high_freq_factor 0.5 must be above .*low_freq_factor 1.0"),
        ({"low_freq_factor": "1"}, "low_freq_factor is '1'; it must be a number above 0"),
        ({"original_max_position_embeddings": 0}, "is 0; it must be a whole number of at least 1"),
        ({"original_max_position_embeddings": 8192.0}, "is 8192.0; it must be a whole number"),
        ({"original_max_position_embeddings": 10**99}, "it must be a whole number of at least 1"),
        ({"kind": "dynamic"}, "kind is 'dynamic'; it must be llama3 or linear or yarn or longrope"),
        ({"kind": "longrope"}, "short_factors and long_factors must have 4 numbers each"),
        ({"long_factors": [0.0]}, "long_factors: each factor must be a number above 0"),
        ({"amplitude": 0}, "amplitude is 0; it must be a number above 0"),
        ({"rope_type": "llama3"}, "unknown model field 'rope_scaling.rope_type'"),
    ],
)
def test_bad_settings_are_refused_by_name(change, message):
    with pytest.raises(BadInput, match=message):
        tiny_config(rope_scaling=SCALING | change)


def test_yarn_needs_frequencies_that_fall():
    with pytest.raises(BadInput, match=r"rope_theta 1.0: yarn needs a base above 1"):
        tiny_config(rope_scaling=SCALING | {"kind": "yarn"}, rope_theta=1.0)


def test_learned_positions_can_not_be_scaled():
    with pytest.raises(BadInput, match="positions are learned, and only rotary positions are"):
        tiny_config(rope_scaling=SCALING, positions="learned")
