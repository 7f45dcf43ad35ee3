"""Settings that no scaling of rotary positions can have are refused."""

from pion.config.model_config import ModelConfig
from tests.support.tiny_config import tiny_config

SCALING = {"factor": 8.0, "original_max_position_embeddings": 8192}


def test_the_factors_are_those_of_llama_3_1_unless_they_are_given():
    config = tiny_config(rope_scaling=SCALING)
    assert (config.rope_scaling.low_freq_factor, config.rope_scaling.high_freq_factor) == (1, 4)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "rope_scaling" not in tiny_config().to_dict()
