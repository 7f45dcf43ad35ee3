"""`.pt` files: archives that unpack to more, and tensors that claim more than the file has."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pion.errors import BadInput
from pion.formats.seeds import import_seed
from pion.formats.seeds.read import LARGEST_PICKLE, MOST_FILES, check_archive
from tests.hostile.in_process import refused
from tests.hostile.model_folders import ESCAPE
from tests.paths import SEEDS
from tests.support.seed_files import read_seed, write_seed

SEED = SEEDS / "pion_nocap_ckpt.pt"
EMBED = "embed.weight"


def saved(path, **changes):
    write_seed(read_seed(SEED) | changes, path)
    return path


def files_of(path=SEED):
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def repacked(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(f"x/{name}", data)
    return path


def not_imported(folder, path):
    """Return the line with which `pion import-seed` refuses a file, and writes nothing."""
    message = refused("import-seed", path, folder / "out")
    assert str(path) in message
    assert not (folder / "out").exists()
    return message


# ---------------------------------------------------------------- tensors

# tests/pion/formats/seeds/test_read.py has tensors of other shapes and kinds.
TENSORS = {
    "5 GB of one number": torch.zeros(1).expand(10**5, 12_500),
    "4 TB of one number": torch.zeros(1).expand(10**6, 10**6),
    "a row again and again": torch.zeros(1, 48).expand(10**8, 48),
}


@pytest.mark.parametrize("tensor", TENSORS)
def test_a_tensor_that_is_no_part_of_the_file_is_refused(tmp_path, tensor):
    model = read_seed(SEED)["model"] | {EMBED: TENSORS[tensor]}
    message = not_imported(tmp_path, saved(tmp_path / "x.pt", model=model))
    assert "embed.weight claims shape" in message
    assert "more elements than the file has" in message


NAMES = {
    "a layer of a thousand digits": f"blocks.{'9' * 1000}.attn.qkvo_w",
    "a layer of a hundred digits": f"blocks.{'9' * 100}.attn.qkvo_w",
    "a layer of other digits": "blocks.٣.attn.qkvo_w",
    "a table of a hundred digits": f"value_embeds.{'9' * 100}.weight",
    "an escape": f"blocks.0.{ESCAPE}",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_daisy_wee_has_is_refused(tmp_path, name):
    checkpoint = torch.load(SEEDS / "daisy_ckpt.pt", weights_only=True)
    model = checkpoint["model"]
    like = next(tensor for key, tensor in model.items() if key.endswith("qkvo_w"))
    write_seed(checkpoint | {"model": model | {NAMES[name]: like}}, tmp_path / "x.pt")
    assert len(not_imported(tmp_path, tmp_path / "x.pt")) < 1000


def test_one_tensor_under_many_names_does_not_multiply_the_file(tmp_path):
    model = read_seed(SEED)["model"]
    matrix = torch.zeros(200, 200)
    copies = {f"layers.{i}.ffn.w1.weight": matrix for i in range(2, 800)}
    path = saved(tmp_path / "x.pt", model=model | copies)
    assert "its tensors claim" in not_imported(tmp_path, path)


def test_a_storage_that_claims_more_than_its_file_in_the_archive_reads_nothing_else(tmp_path):
    """The pickle says how large a storage is, and torch believes the pickle."""
    files = files_of()
    matrix = read_seed(SEED)["model"]["layers.0.ffn.w1.weight"].numpy().tobytes()
    name = next(name for name, data in files.items() if data == matrix)
    files[name] = matrix[:4]
    repacked(tmp_path / "x.pt", files)
    weights = import_seed(tmp_path / "x.pt").state_dict()
    # It read other bytes of the same file, and no memory of this process.
    read = weights["blocks.0.feedforward.gate_proj.weight"].numpy().tobytes()
    assert read != matrix
    assert read in (tmp_path / "x.pt").read_bytes()


def test_tied_weights_views_and_the_names_of_a_compiled_model_are_imported(tmp_path):
    expected = import_seed(SEED).state_dict()
    model = read_seed(SEED)["model"]
    flat = torch.cat([tensor.flatten() for tensor in model.values()])
    views = dict(zip(model, flat.split([tensor.numel() for tensor in model.values()])))
    views = {name: view.view_as(model[name]) for name, view in views.items()}
    honest = {
        "views of one storage": views,
        "tied": model | {"lm_head.weight": model[EMBED]},
        "compiled": model | {f"_orig_mod.{name}": tensor for name, tensor in model.items()},
        "transposed in the file": model | {EMBED: model[EMBED].t().contiguous().t()},
        "parameters": {name: torch.nn.Parameter(tensor) for name, tensor in model.items()},
    }
    for name, tensors in honest.items():
        path = saved(tmp_path / "x.pt", model=tensors)
        imported = import_seed(path).state_dict()
        assert all(torch.equal(imported[key], expected[key]) for key in expected), name


# ---------------------------------------------------------------- settings

WRONG = {
    "a tensor": torch.ones(2),
    "a text": ESCAPE,
    "NaN": float("nan"),
    "1e300": 1e300,
    "-1": -1,
    "a list": [1],
    "10^400": 10**400,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["tie_embeddings", "logit_cap", "max_seq_len", "rope_theta"])
def test_a_setting_that_no_model_has_is_refused(tmp_path, name, wrong):
    config = read_seed(SEED)["config"]
    vars(config).update(logit_cap=30.0, use_soft_cap=True)
    vars(config)[name] = WRONG[wrong]
    with pytest.raises(BadInput) as error:
        import_seed(saved(tmp_path / "x.pt", config=config))
    ours = {"max_seq_len": "seq_len", "logit_cap": "softcap"}.get(name, name)
    assert ours in str(error.value) or name in str(error.value)
    assert str(tmp_path / "x.pt") in str(error.value)


def test_a_context_of_1e11_costs_nothing(tmp_path):
    config = read_seed(SEED)["config"]
    vars(config)["max_seq_len"] = 10**11
    assert import_seed(saved(tmp_path / "x.pt", config=config)).config.seq_len == 10**11


# ---------------------------------------------------------------- archives


def legacy(path):
    write_seed(read_seed(SEED), path, _use_new_zipfile_serialization=False)


def deflated(path):
    repacked(path, files_of() | {"data.pkl": bytes(1 << 26)}, zipfile.ZIP_DEFLATED)


def overlapping(path):
    """Let the directory list one file a thousand times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/0", bytes(10**5))
        archive.filelist += archive.filelist * 999


def encrypted(path):
    repacked(path, files_of())
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    data[start + 8] |= 1
    path.write_bytes(data)


def with_comment(path):
    repacked(path, files_of())
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5\6" + bytes(18)


def behind_something(path):
    path.write_bytes(b"#!/bin/sh\n" + SEED.read_bytes())


def large_pickle(path):
    repacked(path, files_of() | {"data.pkl": bytes(LARGEST_PICKLE + 1)})


def no_pickle(path):
    repacked(path, {name: data for name, data in files_of().items() if name != "data.pkl"})


def endless_number(path):
    repacked(path, files_of() | {"data.pkl": b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b"."})


def asks_for(module, name, argument) -> Callable[[Path], None]:
    """Return an attack that calls a function that torch allows with a whole number."""
    data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."
    return lambda path: repacked(path, files_of() | {"data.pkl": data}) and None


FIVE_BILLION = b"\x8a\x05" + (5 * 10**9).to_bytes(5, "little")
ARCHIVES = {
    "of PyTorch 1.5": (legacy, "load it in Python and save it again with torch.save"),
    "compressed": (deflated, "compressed or encrypted"),
    "encrypted": (encrypted, "compressed or encrypted"),
    "one file a thousand times": (overlapping, "claim more bytes than"),
    "with a comment": (with_comment, "is not a PyTorch checkpoint, or is damaged"),
    "behind a script": (behind_something, "is not a PyTorch checkpoint, or is damaged"),
    "a large pickle": (large_pickle, "its pickle has more than 4,194,304 bytes"),
    "no pickle": (no_pickle, "is not a PyTorch checkpoint, or is damaged"),
    "a number of 2 GB": (endless_number, "is not a PyTorch checkpoint, or is damaged"),
    "5 GB of zeros": (asks_for("builtins", "bytearray", FIVE_BILLION), "builtins.bytearray"),
    "a tensor of 20 GB": (asks_for("torch", "Tensor", FIVE_BILLION), "torch.Tensor"),
    "a command": (asks_for("os", "system", b"X\x04\0\0\0true"), "os.system"),
    "a name with escapes": (asks_for("os\x1b]0;x\x07", "y", b"N"), r"os\x1b]0;x\x07.y"),
}


@pytest.mark.parametrize("archive", ARCHIVES)
def test_an_archive_that_torch_would_not_write_is_refused(tmp_path, archive):
    write, why = ARCHIVES[archive]
    write(tmp_path / "x.pt")
    assert why in not_imported(tmp_path, tmp_path / "x.pt")


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "x.pt").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="not a regular file"):
        import_seed(tmp_path / "x.pt")


def test_half_as_many_files_and_half_as_large_a_pickle_are_read(tmp_path, monkeypatch):
    half = dict.fromkeys((f"data/{i}" for i in range(MOST_FILES // 2 - 1)), b"")
    note = pickle.dumps("x" * (LARGEST_PICKLE // 2), protocol=2)
    path = repacked(tmp_path / "half.pt", half | {"data.pkl": note})
    assert check_archive(path, frozenset()) == path.stat().st_size
    monkeypatch.setattr("pion.formats.seeds.read.MOST_FILES", MOST_FILES // 2 - 1)
    with pytest.raises(BadInput, match="has 16,384 files; at most 16,383 are read"):
        check_archive(path, frozenset())
