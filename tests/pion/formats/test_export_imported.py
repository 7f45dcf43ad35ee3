"""An imported model is exported as the class that it had, with all its embedding rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import train_bpe
from pion.formats.export import export_model, exported_rows
from pion.formats.load import load, load_decoder
from pion.formats.verify import verify_export
from pion.model.decoder import Decoder
from tests.support.stock_models import STOCK, saved, stock_model

TEXTS = ["Return a new header with the string.\n\n    >>> os.path.join('a', 'b')", "café 12 345"]
# More rows than the tokenizer has ids, as in Qwen's models.
ROWS = 320
QWENS_STEPS: Mapping[str, Any] = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": PRETOKENIZE_REGEX},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
        ],
    },
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(TEXTS * 3, 300).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | QWENS_STEPS))
    return path


@pytest.mark.parametrize("name", STOCK)
def test_an_import_is_exported_as_its_class_with_all_rows(
    name: str, tokenizer: Path, tmp_path: Path
) -> None:
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


def test_a_model_of_a_job_has_rows_for_the_ids_of_its_tokenizer_alone(
    tokenizer: Path, tmp_path: Path
) -> None:
    imported = load_decoder(saved(stock_model("SmolLM2", vocab_size=ROWS), tmp_path / "theirs"))
    config = replace(imported.config, imported=False)
    ours = Decoder.from_state(config, imported.state_dict())
    export_model(ours, tokenizer, tmp_path / "out")
    again, ids = load(tmp_path / "out")
    assert ids is not None
    assert again.config.vocab_size == ids.vocab_size == exported_rows(config, ids) < ROWS
    assert exported_rows(imported.config, ids) == ROWS
