"""An export with modelling files runs without Pion, and Pion reads it without running them."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import pion
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.errors import BadInput, PionError
from pion.formats.export import export_model
from pion.formats.huggingface.bundled_code import flat_copy, modelling_files, runs_only_our_code
from pion.formats.load import load_decoder
from pion.formats.target_folder import check_replaceable, is_export
from pion.formats.verify import verify_export
from pion.model.decoder import Decoder
from pipeline.cli import main
from tests.support.capped_models import MODELS, scrambled

TEXT = "the quick brown fox jumps over the lazy dog " * 6
LIBRARY_FILES = {"model_config.py", "decoder.py", "attention.py", "modeling_pion.py"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe([TEXT], 280).save(path)
    return path


@pytest.fixture(scope="module")
def models():
    return {name: scrambled(config) for name, config in MODELS.items()}


@pytest.fixture(scope="module")
def exports(models, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name, model in models.items():
        export_model(model, tokenizer, folder / name)
    return folder


@pytest.fixture
def export(models, tokenizer, tmp_path):
    export_model(models["dense"], tokenizer, tmp_path / "model")
    return tmp_path / "model"


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# ---------------------------------------------------------------- where Pion is not installed

WITHOUT_PION = """
import sys
sys.modules["pion"] = None  # so that importing it fails
sys.modules["sklearn"] = None  # transformers imports it where it is, which takes a second
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

exports = Path(sys.argv[1])
tokens = load_file(exports / "tokens.safetensors")["tokens"]
found = {}
for name in sys.argv[2:]:
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(
            exports / name, dtype=dtype, trust_remote_code=True
        )
        assert {p.dtype for p in model.parameters()} == {dtype}
        found[f"{name}.{dtype}"] = model(tokens).logits.float().contiguous()
        if dtype is torch.float32:
            found[f"{name}.greedy"] = model.generate(
                tokens[:1, :9], max_new_tokens=40, do_sample=False, eos_token_id=None
            )
            model.save_pretrained(exports / "again" / name)
tokenizer = AutoTokenizer.from_pretrained(exports / name, trust_remote_code=True)
found["ids"] = torch.tensor(tokenizer("the quick brown fox")["input_ids"])
save_file(found, exports / "found.safetensors")
"""


@pytest.mark.soak  # the next test does this in this process, test_modeling_pion.py generates text
def test_without_pion_it_gives_the_same_logits_and_greedy_text(
    exports, models, tokenizer, tmp_path
):
    tokens = torch.randint(0, 280, (2, 60), generator=torch.Generator().manual_seed(3))
    save_file({"tokens": tokens}, exports / "tokens.safetensors")
    subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_PION, str(exports), *models],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        check=True,
        timeout=300,
    )
    found = load_file(exports / "found.safetensors")
    assert found["ids"].tolist() == Tokenizer.from_file(tokenizer).encode("the quick brown fox")
    for name, model in models.items():
        with torch.inference_mode():
            ours = model(tokens)[..., :280]
            rounded = Decoder.from_state(model.config, model.state_dict()).bfloat16()(tokens)
        theirs = found[f"{name}.torch.float32"]
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5, msg=name)
        theirs = found[f"{name}.torch.bfloat16"]
        torch.testing.assert_close(theirs, rounded[..., :280].float(), rtol=0, atol=1e-2, msg=name)
        prompt = tokens[0, :9].tolist()
        greedy = pion.generate(
            model, prompt, max_tokens=40, temperature=0, stop_ids=(), vocab_size=280
        )
        assert found[f"{name}.greedy"][0].tolist() == [*prompt, *greedy], name
        again = load_decoder(exports / "again" / name)  # as transformers saves it
        torch.testing.assert_close(again(tokens), ours, rtol=0, atol=1e-6, msg=name)


# ---------------------------------------------------------------- where Pion is


@pytest.mark.parametrize("name", MODELS)
def test_the_exported_model_is_verified_next_to_the_library(name, exports, models, tokenizer):
    assert verify_export(exports / name, models[name], tokenizer, [TEXT]) <= 1e-5
    tokens = torch.arange(40)[None]
    models[name].loss(tokens, tokens).backward()  # the library's own operations still work
    for parameter in models[name].parameters():
        parameter.grad = None


def plant(folder):
    """Add a line to each modelling file that leaves a mark when it is run; return the mark."""
    mark = folder.parent / "was run"
    for path in folder.glob("*.py"):
        path.write_text(path.read_text() + f"\nopen({str(mark)!r}, 'w').close()\n")
    return mark


def test_pion_never_runs_a_modelling_file(export):
    mark = plant(export)
    pion.load(export)
    assert not mark.exists()


@pytest.mark.parametrize("command", ["generate", "chat", "eval"])
def test_nor_does_a_command(export, command, monkeypatch, capsys):
    mark = plant(export)
    text = export.parent / "text.txt"
    text.write_text(TEXT)
    more = {"generate": ["--prompt", "the", "--max-tokens", "2"], "eval": [str(text)]}
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert main([command, str(export), *more.get(command, [])]) == 0
    assert capsys.readouterr().out.strip()
    assert not mark.exists()


def test_modelling_files_that_were_changed_are_not_run_to_verify_them(export, models, tokenizer):
    mark = plant(export)
    with pytest.raises(PionError, match="not those that this version of Pion writes"):
        verify_export(export, models["dense"], tokenizer, [TEXT])
    assert not mark.exists()


def remove_a_file(export):
    (export / "norm_and_projection.py").unlink()


def bring_a_way_to_generate(export):
    (export / "custom_generate").mkdir()
    (export / "custom_generate" / "generate.py").write_text("raise SystemExit")


def take_the_model_from_the_hub(export):
    auto_map = json.loads((export / "config.json").read_text())["auto_map"]
    change_json(export / "config.json", auto_map={k: f"a/b--{v}" for k, v in auto_map.items()})


def take_the_tokenizer_from_the_hub(export):
    change_json(export / "tokenizer_config.json", auto_map={"AutoTokenizer": "a/b--t.T"})


def become_stock(export):
    for path in export.glob("*.py"):
        path.unlink()


@pytest.mark.parametrize(
    "change",
    [
        plant,
        remove_a_file,
        bring_a_way_to_generate,
        take_the_model_from_the_hub,
        take_the_tokenizer_from_the_hub,
        become_stock,
    ],
)
def test_only_code_that_this_version_writes_is_trusted(change, export):
    assert runs_only_our_code(export)
    change(export)
    assert not runs_only_our_code(export)


def test_settings_and_tensors_that_do_not_fit_are_named(export):
    weights = load_file(export / "model.safetensors")
    save_file(weights | {"other.weight": torch.zeros(1)}, export / "model.safetensors")
    with pytest.raises(BadInput, match=r"unexpected tensor other\.weight"):
        load_decoder(export)
    save_file({**weights, "decoder.blocks.9.x": torch.zeros(1)}, export / "model.safetensors")
    with pytest.raises(BadInput, match=r"unexpected tensor blocks\.9\.x"):
        load_decoder(export)
    settings = json.loads((export / "config.json").read_text())["decoder_settings"]
    change_json(export / "config.json", decoder_settings=settings | {"gravity": 1})
    with pytest.raises(BadInput, match="unknown model field 'gravity'"):
        load_decoder(export)
    change_json(export / "config.json", decoder_settings=None)
    with pytest.raises(BadInput, match=r"config\.json has no decoder_settings"):
        load_decoder(export)


# ---------------------------------------------------------------- the folder


def test_the_folder_has_the_librarys_files_and_says_so(export):
    names = {path.name for path in export.glob("*.py")}
    assert names == set(modelling_files())
    assert names >= LIBRARY_FILES
    for path in export.glob("*.py"):
        assert path.read_text().startswith("# A modelling file of Pion (Apache-2.0), copied")
    config = json.loads((export / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_pion.PionForCausalLM"


def test_an_export_replaces_another_versions_modelling_files(export, tokenizer, models):
    (export / "decoder.py").rename(export / "renamed_since.py")
    assert is_export(export)
    export_model(models["experts"], tokenizer, export)
    assert {path.name for path in export.glob("*.py")} == set(modelling_files())


def test_a_python_file_of_the_users_keeps_the_folder(export):
    (export / "train.py").write_text("print('mine')\n")
    assert not is_export(export)
    with pytest.raises(BadInput, match=r"not part of a Pion export \(train\.py\)"):
        check_replaceable(export)


# ---------------------------------------------------------------- how modules are copied

FILES = {
    "start.py": '''"""The first."""

import torch
from lib.deep.near import (
    distance,  # kept
    unit,
)

if torch:
    from lib.far import distance as other


def both():
    return distance() + other() + unit
''',
    "deep/near.py": "from lib.far import unit\n\n\ndef distance():\n    return unit\n",
    "far.py": "unit = 1\n\n\ndef distance():\n    from lib.start import torch\n    return 2\n",
    "unused.py": "import numpy\n",
}


def package(folder, **changed):
    for name, text in (FILES | {f"{name}.py": text for name, text in changed.items()}).items():
        path = folder / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return folder / "lib"


def test_the_copy_has_what_is_imported_and_works_as_a_flat_package(tmp_path, monkeypatch):
    texts = flat_copy(package(tmp_path), "lib.start")
    assert list(texts) == ["far.py", "near.py", "start.py"]
    assert texts["start.py"] == FILES["start.py"].replace("lib.deep.near", ".near").replace(
        "lib.far", ".far"
    )
    flat = tmp_path / "elsewhere" / "flat_copy_of_lib"
    flat.mkdir(parents=True)
    for name, text in texts.items():
        (flat / name).write_text(text)
    monkeypatch.syspath_prepend(str(flat.parent))
    from flat_copy_of_lib.start import both

    assert both() == 4
    assert "lib" not in sys.modules


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import lib.far\n", r"start\.py:1: write `from lib\.far import …`"),
        ("import lib\n", r"write `from lib import …`"),
        ("from lib import far\n", "lib is not a module with a file"),
        ("from lib.deep import near\n", r"start\.py:1: lib\.deep is not a module with a file"),
        ("from .far import unit\n", r"write `from lib\.module import …` in full"),
        ("from lib.nowhere import unit\n", r"lib\.nowhere is not a module with a file"),
        ("import numpy\n", "may not import numpy"),
        ("from torch import nn; from scipy.special import erf\n", "may not import scipy"),
        ("import importlib\n\nimportlib.import_module('lib.far')\n", r"start\.py:3: import_module"),
        ("far = __import__('lib.far')\n", "__import__"),
        ("from torch import nn; from lib.far import unit\n", "Start a line with each"),
        ("from lib.far \\\n    import unit\n", "Start a line with each"),
        ('"""Say\n\nfrom .future import it\n"""\n', r"would find the imports \['future'\]"),
    ],
)
def test_an_import_that_has_no_relative_form_is_named(text, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        flat_copy(package(tmp_path, start=text), "lib.start")


def test_two_modules_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"would both be far\.py in a flat folder"):
        flat_copy(
            package(tmp_path, **{"deep/far": "", "deep/near": "from lib.deep.far import x\n"}),
            "lib.start",
        )
