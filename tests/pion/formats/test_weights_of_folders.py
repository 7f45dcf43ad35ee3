"""A folder with pickles only is refused with the command that converts them, and it works."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from pion.errors import BadInput
from pion.formats.load import load_decoder
from pion.formats.weights import WEIGHTS
from pipeline.models.find import find_model
from tests.support.stock_models import apart, saved, stock_model, tokens

MODEL = "Llama 3.2"


def pickled(folder: Path) -> Path:
    """Return a folder as transformers saved it before safetensors."""
    model = stock_model(MODEL)
    saved(model, folder)
    (folder / WEIGHTS).unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", ["it's a model", "model"])
def test_the_command_in_the_message_converts_the_folder(name: str, tmp_path: Path) -> None:
    folder = pickled(tmp_path / name)
    with pytest.raises(BadInput, match=r"pickles \(\.bin\), which can run code") as refusal:
        load_decoder(folder)
    python, option, code = shlex.split(str(refusal.value).partition("convert them: ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})  # importing transformers again, in another process, would take seconds
    assert apart(load_decoder(folder), stock_model(MODEL), tokens(64)) <= 1e-4


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    folder = pickled(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(BadInput, match="were not read"):
        load_decoder(folder)


def test_sharded_pickles_are_refused_too(tmp_path: Path) -> None:
    folder = pickled(tmp_path)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(BadInput, match="convert them: python -c"):
        load_decoder(folder)


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").touch()  # what transformers' Trainer leaves
    with pytest.raises(BadInput, match=r"it has no model\.safetensors and no model\.safetensors\."):
        load_decoder(tmp_path)


def test_sharded_and_pickled_folders_are_found_as_models(tmp_path: Path) -> None:
    """So that what is wrong with a folder is said by its loader."""
    sharded = saved(stock_model(MODEL), tmp_path / "sharded", shard_size="40KB")
    for folder in (sharded, pickled(tmp_path / "pickled")):
        assert find_model(str(folder)).folder == folder
