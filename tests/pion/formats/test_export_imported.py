"""An imported model is exported as its class, with all its embedding rows, or rounded."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.errors import BadInput
from pion.formats.export import (
    export_model,
    exported_rows,
    require_roundable,
    rounded,
    rounding_cost,
)
from pion.formats.load import load, load_decoder
from pion.formats.verify import verify_export
from pion.model.decoder import Decoder
from tests.support.stock_models import NAMES, STOCK, saved, stock_model
from tests.support.tiny_config import tiny_config
from tests.support.tokenizer_kinds import settings_of

TEXTS = ["Return a new header with the string.\n\n    >>> os.path.join('a', 'b')", "café 12 345"]
# More rows than the tokenizer has ids, as in Qwen's models.
ROWS = 320


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(TEXTS * 3, 300).save(path)
    qwens = {name: settings_of("qwen")[name] for name in ("normalizer", "pre_tokenizer")}
    path.write_text(json.dumps(json.loads(path.read_text()) | qwens))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_an_import_is_exported_as_its_class_with_all_rows(name, tokenizer, tmp_path):
    ours = load_decoder(saved(stock_model(name, vocab_size=ROWS), tmp_path / "theirs"))
    # As a run trains it: from a record of its settings in a checkpoint.
    trained = Decoder.from_state(ModelConfig.from_dict(ours.config.to_dict()), ours.state_dict())
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(0.01)
    export_model(trained, tokenizer, tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["architectures"] == [f"{STOCK[name][0]}ForCausalLM"]
    assert written["vocab_size"] == ROWS
    embedding = load_file(tmp_path / "out/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(embedding.float(), trained.embed.weight)
    assert verify_export(tmp_path / "out", trained, tokenizer, TEXTS) <= 1e-4
    again, _ = load(tmp_path / "out")
    assert again.config == ours.config


def test_a_model_of_a_job_has_rows_for_the_ids_of_its_tokenizer_alone(tokenizer, tmp_path):
    imported = load_decoder(saved(stock_model("SmolLM2", vocab_size=ROWS), tmp_path / "theirs"))
    config = replace(imported.config, imported=False)
    export_model(Decoder.from_state(config, imported.state_dict()), tokenizer, tmp_path / "out")
    again, ids = load(tmp_path / "out")
    assert again.config.vocab_size == ids.vocab_size == exported_rows(config, ids) < ROWS
    assert exported_rows(imported.config, ids) == ROWS


# ---------------------------------------------------------------- rounding to bfloat16

TEXT = "the quick brown fox jumps over the lazy dog " * 3
CONFIG = tiny_config(vocab_size=270)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe([TEXT * 3], 270).save(path)
    return path


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder(tiny_config(vocab_size=270, init_std=0.3))


def test_every_weight_has_a_value_of_bfloat16_and_the_model_keeps_its_own(model):
    before = model.embed.weight.clone()
    for name, tensor in rounded(model).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensor.bfloat16().float()), name
    assert torch.equal(model.embed.weight, before)
    assert not torch.equal(rounded(model).embed.weight, before)


def test_the_cost_is_the_difference_of_the_two_models(model, tokenizer_path):
    tokenizer = Tokenizer.from_file(tokenizer_path)
    cost = rounding_cost(model, rounded(model), tokenizer, [TEXT, "a", ""])
    ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(TEXT)][:25]])
    with torch.no_grad():
        difference = (model(ids[:, :-1]) - rounded(model)(ids[:, :-1])).abs().max()
    assert cost.logits >= float(difference) > 0
    assert cost.before != cost.after
    assert cost.after == pytest.approx(cost.before, rel=0.05)
    assert cost.tokens == 24 + 1
    nothing = rounding_cost(model, model, tokenizer, [TEXT])
    assert (nothing.logits, nothing.before) == (0, nothing.after)


def test_no_text_is_no_measurement(model, tokenizer_path):
    with pytest.raises(BadInput, match="no text"):
        rounding_cost(model, model, Tokenizer.from_file(tokenizer_path), [""])


def test_an_export_of_a_decoder_in_bf16_is_in_bf16_and_exact(model, tokenizer_path, tmp_path):
    exact = rounded(model)
    stored = Decoder.from_state(exact.config, exact.state_dict(), torch.bfloat16)
    export_model(stored, tokenizer_path, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert verify_export(tmp_path / "out", exact, tokenizer_path, [TEXT]) < 1e-4
    again = load_decoder(tmp_path / "out").state_dict()
    assert torch.equal(again["norm.weight"], exact.state_dict()["norm.weight"])


def test_a_model_with_its_own_code_is_not_rounded():
    require_roundable(CONFIG)
    with pytest.raises(BadInput, match="dtype: bfloat16 is for stock architectures"):
        require_roundable(tiny_config(softcap=30.0))
