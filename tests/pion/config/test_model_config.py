"""A model's settings: presets, round trips, and invalid settings."""

import importlib
import subprocess
import sys

import pytest

import pion
from pion.config.model_config import ModelConfig
from pion.config.presets import PRESETS
from pion.errors import BadInput

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


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'pion-small'"):
        ModelConfig.preset("pion-smal")


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(BadInput, match="'n_layer'; did you mean 'n_layers'"):
        ModelConfig.preset("pion-small", n_layer=3)


def test_missing_fields_are_listed():
    with pytest.raises(BadInput, match=r"settings are missing d_ff, vocab_size, seq_len$"):
        ModelConfig.from_dict(dict(list(FIELDS.items())[:4]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model is 0"),
        ({"n_layers": 2.5}, "n_layers is 2.5"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"seq_len": "long"}, "seq_len is 'long'"),
        ({"n_heads": 3, "n_kv_heads": 1}, "d_model 64 is not a multiple of n_heads 3"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"softcap": "strong"}, "softcap is 'strong'; it must be a number above 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"scales": {"logits": 0}}, "scales.logits is 0; it must be a number above 0"),
        ({"heads": {"qk_norm": False, "whole_norm": True}}, "heads.whole_norm: with qk_norm false"),
        ({"heads": {"unrotated_layers": [9]}}, "heads names layer 9"),
        ({"windows": {"tokens": 8, "block": 1, "full_layers": [9]}}, "windows names layer 9"),
        ({"heads": {"rotary_share": 1.5}}, "heads.rotary_share is 1.5"),
        ({"heads": {"rotary_share": 0.2}}, "rotary_share 0.2 of head_dim 16 is 3 dimensions"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"family": "pio"}, "family 'pio'; did you mean 'pion'"),
    ],
)
def test_settings_that_make_no_model_are_refused(change, message):
    with pytest.raises(BadInput, match=message):
        ModelConfig(**(FIELDS | change))


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "primitives.rank is 0"),
        ({"rank": 72}, "primitives.rank 72 is above 64, the smaller side of a feed-forward matrix"),
        ({"n": 4, "rank": 3}, "must be a multiple of"),
        ({"top_k": 9}, "top_k 9 is more than primitives.n 8"),
    ],
)
def test_primitives_that_no_model_can_have_are_refused(changes, message):
    primitives = {"n": 8, "rank": 4, "top_k": 3, "bands": [[0], [1]]} | changes
    with pytest.raises(BadInput) as refusal:
        ModelConfig.from_dict(FIELDS | {"activation": "gelu", "primitives": primitives})
    assert message in str(refusal.value)
