"""The tensors of a model in shards, and shards that are missing, damaged or not the model's."""

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file

from pion.errors import BadInput
from pion.formats.load import load_decoder
from pion.formats.model_tensors import read_adapter_tensors, saved_model_tensors
from pion.formats.weights import INDEX, MOST_SHARDS, WEIGHTS
from pion.model.saved_weights import Tensors
from pipeline.models.find import find_model
from tests.support.stock_models import apart, saved, stock_model, tokens

NAME = "model.layers.1.self_attn.q_proj.bias"


@pytest.fixture
def folder(tmp_path):
    return saved(stock_model("Qwen2.5"), tmp_path, shard_size="40KB")


def index(folder):
    return json.loads((folder / INDEX).read_text())


def change(folder, **fields):
    (folder / INDEX).write_text(json.dumps(index(folder) | fields))


def shard_of(folder, name):
    return folder / str(index(folder)["weight_map"][name])


def test_shards_by_transformers_are_one_model(folder):
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert not (folder / WEIGHTS).exists()
    assert apart(load_decoder(folder), stock_model("Qwen2.5"), tokens(64)) <= 1e-4


def test_one_file_with_all_tensors_comes_before_an_index(folder):
    whole = Tensors(saved_model_tensors(folder))
    save_file({name: tensor.clone() for name, tensor in whole.items()}, folder / WEIGHTS)
    change(folder, weight_map={"x": "nowhere.safetensors"})
    assert saved_model_tensors(folder).layout().keys() == whole.keys()


def test_a_missing_shard_is_named(folder):
    shard = shard_of(folder, NAME)
    shard.unlink()
    with pytest.raises(BadInput, match=rf"{shard.name} is missing, but {INDEX} names it"):
        load_decoder(folder)


def test_a_damaged_shard_is_named(folder):
    shard = shard_of(folder, NAME)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BadInput, match=rf"{shard} is damaged"):
        load_decoder(folder)


def test_a_shard_of_another_model_is_named(folder):
    shard = shard_of(folder, NAME)
    save_file({name: t.clone() for name, t in load_file(shard).items() if name != NAME}, shard)
    with pytest.raises(BadInput, match=rf"{shard.name} has no tensor '{NAME}', but"):
        load_decoder(folder)


def test_a_tensor_that_the_index_does_not_name_is_missing(folder):
    named = {name: shard for name, shard in index(folder)["weight_map"].items() if name != NAME}
    change(folder, weight_map=named)
    with pytest.raises(BadInput, match=r"no blocks\.1\.attention\.q_proj\.bias of shape"):
        load_decoder(folder)


@pytest.mark.parametrize(
    ("shard", "as_shown"),
    [
        ("../elsewhere.safetensors", "'../elsewhere.safetensors'"),
        ("/etc/passwd", "'/etc/passwd'"),
        ("shards/model.safetensors", "'shards/model.safetensors'"),
        ("..", "'..'"),
        (".hidden.safetensors", "'.hidden.safetensors'"),
        ("model.bin", "'model.bin'"),
        ("a\0.safetensors", "'a.x00.safetensors'"),
        ("a\n.safetensors", "'a.n.safetensors'"),
        ("a" * 5000 + ".safetensors", "'a{99}"),
        ("", "''"),
        (3, "3"),
        (["model.safetensors"], r"\['model.safetensors'\]"),
    ],
)
def test_a_shard_is_a_file_of_this_folder(folder, shard, as_shown):
    save_file({"stolen": torch.zeros(1)}, folder.parent / "elsewhere.safetensors")
    change(folder, weight_map={"stolen": shard})
    with pytest.raises(
        BadInput, match=f"the file of 'stolen' is {as_shown}.*; it must be the name"
    ):
        load_decoder(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is None; it must name each tensor's file"),
        ({}, "weight_map is {}; it must name"),
        (["model.safetensors"], "weight_map is .*; it must name"),
        ({f"t{n}": f"{n}.safetensors" for n in range(MOST_SHARDS + 1)}, "names 257 files"),
        ({f"t{n}": "a.safetensors" for n in range(2**16 + 1)}, "has 65,537 tensors; at most"),
    ],
)
def test_an_index_that_no_model_has_is_refused(folder, weight_map, message):
    change(folder, weight_map=weight_map)
    with pytest.raises(BadInput, match=message):
        load_decoder(folder)


def test_an_index_that_is_no_json_is_refused(folder):
    (folder / INDEX).write_text("[" * 10_000)
    with pytest.raises(BadInput, match=rf"{INDEX} is not valid JSON"):
        load_decoder(folder)


# ---------------------------------------------------------------- folders with pickles

MODEL = "Llama 3.2"


def pickled(folder):
    """Return a folder as transformers saved it before safetensors."""
    model = stock_model(MODEL)
    saved(model, folder)
    (folder / WEIGHTS).unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", ["it's a model", "model"])
def test_the_command_in_the_message_converts_the_folder(name, tmp_path):
    folder = pickled(tmp_path / name)
    with pytest.raises(BadInput, match=r"pickles \(\.bin\), which can run code") as refusal:
        load_decoder(folder)
    python, option, code = shlex.split(str(refusal.value).partition("convert them: ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})  # importing transformers again, in another process, would take seconds
    assert apart(load_decoder(folder), stock_model(MODEL), tokens(64)) <= 1e-4


def test_no_pickle_is_loaded(tmp_path):
    folder = pickled(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(BadInput, match="were not read"):
        load_decoder(folder)


def test_sharded_pickles_are_refused_too(tmp_path):
    folder = pickled(tmp_path)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(BadInput, match="convert them: python -c"):
        load_decoder(folder)


def test_a_folder_without_weights_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").touch()  # what transformers' Trainer leaves
    with pytest.raises(BadInput, match=r"it has no model\.safetensors and no model\.safetensors\."):
        load_decoder(tmp_path)


def test_a_folder_that_can_t_be_looked_into_is_not_called_empty(tmp_path):
    for read in (saved_model_tensors, read_adapter_tensors):
        with pytest.raises(BadInput, match=r"can't be read \(File name too long"):
            read(tmp_path / ("x" * 300))


def test_sharded_and_pickled_folders_are_found_as_models(tmp_path):
    """So that what is wrong with a folder is said by its loader."""
    sharded = saved(stock_model(MODEL), tmp_path / "sharded", shard_size="40KB")
    for folder in (sharded, pickled(tmp_path / "pickled")):
        assert find_model(str(folder)).folder == folder
