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


# ---------------------------------------------------------------- files that are refused

Write = Callable[[Path], object]


def tensors(**more) -> Write:
    """Return what writes a checkpoint with these tensors. seeds/test_read.py has tensors of other
    shapes and kinds."""
    return lambda path: saved(path, model=read_seed(SEED)["model"] | more)


def of_daisy(name) -> Write:
    """Return what writes a Daisy-Wee with one more tensor, of this name."""

    def write(path):
        checkpoint = torch.load(SEEDS / "daisy_ckpt.pt", weights_only=True)
        model = checkpoint["model"]
        like = next(tensor for key, tensor in model.items() if key.endswith("qkvo_w"))
        write_seed(checkpoint | {"model": model | {name: like}}, path)

    return write


def archive(method=zipfile.ZIP_STORED, **files) -> Write:
    """Return what writes an archive with these files: None is left out."""

    def write(path):
        every = files_of() | {name.replace("_", "."): data for name, data in files.items()}
        repacked(path, {name: data for name, data in every.items() if data is not None}, method)

    return write


def asks_for(module, name, argument) -> Write:
    """Return what writes an archive that calls a function that torch allows with a whole number."""
    return archive(data_pkl=b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R.")


def legacy(path):
    write_seed(read_seed(SEED), path, _use_new_zipfile_serialization=False)


def overlapping(path):
    """Let the directory list one file a thousand times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/0", bytes(10**5))
        archive.filelist += archive.filelist * 999


def encrypted(path):
    data = bytearray(repacked(path, files_of()).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)


def with_comment(path):
    with zipfile.ZipFile(repacked(path, files_of()), "a") as archive:
        archive.comment = b"PK\5\6" + bytes(18)


NUMBER = torch.zeros(1)
MATRIX = torch.zeros(200, 200)
COPIES = {f"layers.{i}.ffn.w1.weight": MATRIX for i in range(2, 800)}
FIVE_BILLION = b"\x8a\x05" + (5 * 10**9).to_bytes(5, "little")
ENDLESS_NUMBER = b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b"."
NO_CHECKPOINT = "is not a PyTorch checkpoint, or is damaged"
MORE_THAN_THE_FILE = "more elements than the file has"
REFUSED: dict[str, tuple[Write, str]] = {
    "5 GB of one number": (tensors(**{EMBED: NUMBER.expand(10**5, 12_500)}), MORE_THAN_THE_FILE),
    "4 TB of one number": (tensors(**{EMBED: NUMBER.expand(10**6, 10**6)}), MORE_THAN_THE_FILE),
    "a row again and again": (
        tensors(**{EMBED: torch.zeros(1, 48).expand(10**8, 48)}),
        "embed.weight claims shape",
    ),
    "one tensor under many names": (tensors(**COPIES), "its tensors claim"),
    "a layer of a thousand digits": (of_daisy(f"blocks.{'9' * 1000}.attn.qkvo_w"), ""),
    "a layer of a hundred digits": (of_daisy(f"blocks.{'9' * 100}.attn.qkvo_w"), ""),
    "a layer of other digits": (of_daisy("blocks.٣.attn.qkvo_w"), ""),
    "a table of a hundred digits": (of_daisy(f"value_embeds.{'9' * 100}.weight"), ""),
    "a name with an escape": (of_daisy(f"blocks.0.{ESCAPE}"), ""),
    "of PyTorch 1.5": (legacy, "load it in Python and save it again with torch.save"),
    "compressed": (
        archive(zipfile.ZIP_DEFLATED, data_pkl=bytes(1 << 26)),
        "compressed or encrypted",
    ),
    "encrypted": (encrypted, "compressed or encrypted"),
    "one file a thousand times": (overlapping, "claim more bytes than"),
    "with a comment": (with_comment, NO_CHECKPOINT),
    "behind a script": (
        lambda path: path.write_bytes(b"#!/bin/sh\n" + SEED.read_bytes()),
        NO_CHECKPOINT,
    ),
    "a large pickle": (
        archive(data_pkl=bytes(LARGEST_PICKLE + 1)),
        "its pickle has more than 4,194,304 bytes",
    ),
    "no pickle": (archive(data_pkl=None), NO_CHECKPOINT),
    "a number of 2 GB": (archive(data_pkl=ENDLESS_NUMBER), NO_CHECKPOINT),
    "5 GB of zeros": (asks_for("builtins", "bytearray", FIVE_BILLION), "builtins.bytearray"),
    "a tensor of 20 GB": (asks_for("torch", "Tensor", FIVE_BILLION), "torch.Tensor"),
    "a command": (asks_for("os", "system", b"X\x04\0\0\0true"), "os.system"),
    "a call with escapes": (asks_for("os\x1b]0;x\x07", "y", b"N"), r"os\x1b]0;x\x07.y"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_file_is_refused_in_one_line_and_nothing_is_written(tmp_path, what):
    write, words = REFUSED[what]
    write(tmp_path / "x.pt")
    message = refused("import-seed", tmp_path / "x.pt", tmp_path / "out")
    assert str(tmp_path / "x.pt") in message
    assert words in message
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- files that are read


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


# ---------------------------------------------------------------- bounds


def test_half_as_many_files_and_half_as_large_a_pickle_are_read(tmp_path, monkeypatch):
    half = dict.fromkeys((f"data/{i}" for i in range(MOST_FILES // 2 - 1)), b"")
    note = pickle.dumps("x" * (LARGEST_PICKLE // 2), protocol=2)
    path = repacked(tmp_path / "half.pt", half | {"data.pkl": note})
    assert check_archive(path, frozenset()) == path.stat().st_size
    monkeypatch.setattr("pion.formats.seeds.read.MOST_FILES", MOST_FILES // 2 - 1)
    with pytest.raises(BadInput, match="has 16,384 files; at most 16,383 are read"):
        check_archive(path, frozenset())
    monkeypatch.setattr("pion.untrusted_zip.LARGEST_RECORD", 100)
    with pytest.raises(BadInput, match="has a directory of"):
        check_archive(path, frozenset())
