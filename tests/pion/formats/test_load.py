"""Folders and files with a model, and without one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import pion
from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.formats.huggingface.architectures import to_transformers
from pion.formats.load import load_decoder
from pion.model.decoder import Decoder
from tests.paths import SEEDS
from tests.support.tiny_config import tiny_config

SEED = SEEDS / "pion_nocap_ckpt.pt"
CONFIG = tiny_config(vocab_size=270)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the quick brown fox jumps over the lazy dog " * 3], 262)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return Decoder(CONFIG)


def write(folder, config, state, tokenizer=None):
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")


def test_a_checkpoint_and_an_export_of_one_model_load_alike(tmp_path, decoder, tokenizer):
    checkpoint, export = tmp_path / "checkpoint", tmp_path / "export"
    checkpoint.mkdir()
    export.mkdir()
    write(checkpoint, CONFIG.to_dict(), decoder.state_dict(), tokenizer)
    write(export, *to_transformers(CONFIG, decoder.state_dict()), tokenizer)
    for folder in (checkpoint, export):
        model, its_tokenizer = pion.load(folder)
        assert model.config == replace(CONFIG, imported=folder == export)
        assert its_tokenizer.encode("fox") == tokenizer.encode("fox")
        for name, tensor in decoder.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)


def test_a_seed_loads_without_a_tokenizer():
    model, tokenizer = pion.load(SEED)
    assert model.config.d_model == 48
    assert tokenizer is None


def test_a_loaded_model_does_not_depend_on_its_file(tmp_path, decoder):
    write(tmp_path, CONFIG.to_dict(), decoder.state_dict())
    loaded = load_decoder(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert torch.equal(loaded.embed.weight, decoder.embed.weight)


def test_missing_files_are_named(tmp_path, decoder):
    with pytest.raises(BadInput, match=r"has no config\.json"):
        load_decoder(tmp_path / "nowhere")
    write(tmp_path, CONFIG.to_dict(), decoder.state_dict())
    with pytest.raises(BadInput, match=r"tokenizer.json"):
        pion.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"has no model\.safetensors"):
        load_decoder(tmp_path)


def test_settings_that_are_no_object_are_refused(tmp_path):
    """tests/hostile/test_models_*.py have settings and weights that are damaged."""
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadInput, match="should be a JSON object"):
        load_decoder(tmp_path)


def test_weights_that_do_not_fit_their_settings_name_folder_and_tensor(tmp_path, decoder):
    write(tmp_path, CONFIG.to_dict() | {"d_ff": 50}, decoder.state_dict())
    with pytest.raises(BadInput, match=f"{tmp_path}: blocks.0.feedforward.gate_proj.weight has"):
        load_decoder(tmp_path)


def test_a_tied_model_with_another_head_in_its_file_is_refused(tmp_path, decoder):
    settings, state = to_transformers(CONFIG, decoder.state_dict())
    head = state["model.embed_tokens.weight"].clone()
    write(tmp_path, settings, state | {"lm_head.weight": head})
    assert torch.equal(load_decoder(tmp_path).embed.weight, head)
    head[3, 2] += 1e-3
    write(tmp_path, settings, state | {"lm_head.weight": head})
    with pytest.raises(
        BadInput, match=r"true, but lm_head.weight is not model.embed_tokens.weight"
    ):
        load_decoder(tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(tmp_path):
    large = train_bpe(["the quick brown fox jumps over the lazy dog " * 3], 280)
    config = ModelConfig.from_dict(CONFIG.to_dict() | {"vocab_size": 260})
    write(tmp_path, config.to_dict(), Decoder(config).state_dict(), large)
    with pytest.raises(BadInput, match="doesn't fit the model"):
        pion.load(tmp_path)
