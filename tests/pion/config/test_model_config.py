"""A model's settings: presets, round trips, and invalid settings."""

import importlib
import subprocess
import sys

import pytest

import pion
from pion.config.model_config import ModelConfig
from pion.config.presets import PRESETS

FIELDS = {
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 96,
    "vocab_size": 300,
    "seq_len": 32,
}


def test_a_preset_is_the_published_shape_without_softcap():
    config = ModelConfig.preset("pion-small")
    assert (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads) == (640, 16, 10, 2)
    assert (config.d_ff, config.vocab_size, config.seq_len) == (1792, 50_258, 2048)
    assert (config.head_dim, config.rope_theta, config.norm_eps) == (64, 10_000.0, 1e-6)
    assert config.softcap is None
    assert config.tie_embeddings


def test_a_preset_takes_overrides():
    config = ModelConfig.preset("pion-nano", vocab_size=4096, softcap=30.0)
    assert (config.vocab_size, config.softcap, config.d_model) == (4096, 30.0, 384)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_the_round_trip_through_a_dict(name):
    config = ModelConfig.preset(name)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_head_dim_may_differ_from_d_model_over_n_heads():
    assert ModelConfig(**FIELDS).head_dim == 16
    assert ModelConfig(**FIELDS, head_dim=32).head_dim == 32


def in_fresh_python(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_the_package_does_not_import_torch():
    in_fresh_python("import pion, sys; assert 'torch' not in sys.modules")


@pytest.mark.soak
def test_public_names_stay_functions_whoever_imports_their_modules_first():
    in_fresh_python(
        "import pion.formats.load, pion.generation.generate, pion\n"
        "assert callable(pion.load) and callable(pion.generate)\n"
        "assert pion.ModelConfig.preset and pion.Decoder and pion.import_seed"
    )


def test_public_names_are_functions_after_their_modules_are_imported():
    importlib.import_module("pion.formats.load")
    importlib.import_module("pion.generation.generate")
    assert callable(pion.load)
    assert callable(pion.generate)


def test_a_name_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'decoder_of_dreams'"):
        pion.decoder_of_dreams  # noqa: B018
