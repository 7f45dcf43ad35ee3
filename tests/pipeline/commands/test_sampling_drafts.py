"""`--drafts`: the same text, from a run's draft block, an exported one, or none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from tests.support.finished_run import make_run

ASKED = ("--prompt", "Return a new header", "--seed", "3", "--max-tokens", "20")
OUT = "out/draft"


@pytest.fixture
def exported(here, made):
    """A folder with an exported model and its block, next to the run."""
    shutil.copytree(made, here, dirs_exist_ok=True)
    return here / "out"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run and an export, which the tests copy."""
    folder = tmp_path_factory.mktemp("made")
    make_run(folder / "runs", draft={"steps": 2, "ids": 200})
    assert main(["export", str(folder / "runs/demo"), str(folder / "out")]) == 0
    return folder


def test_every_number_of_drafts_gives_the_same_text(exported, pion):
    code, text, _ = pion("generate", "demo", *ASKED)
    assert code == 0
    for model in ("demo", "out"):
        for drafts in ("off", "auto", "1", "16"):
            assert pion("generate", model, *ASKED, "--drafts", drafts)[:2] == (0, text)


@pytest.mark.parametrize("drafts", ["0", "17", "-1", "some", "9" * 5000])
def test_a_number_that_makes_no_sense_is_refused(here, pion, drafts):
    code, _, err = pion("generate", "demo", *ASKED, f"--drafts={drafts}")
    assert code == 2
    assert "is not auto, off or a number from 1 to 16" in err


def test_a_model_without_a_block_is_drafted_by_what_its_text_repeats(here, pion):
    make_run(here / "runs")
    texts = {pion("generate", "demo", *ASKED, "--drafts", n)[1] for n in ("off", "auto", "3")}
    assert len(texts) == 1
    pion("export", "demo", "out")
    assert not Path(OUT).exists()


def test_an_export_is_the_plain_model_with_the_block_apart(exported, pion):
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert "draft" not in config
    tensors = load_file(exported / "model.safetensors")
    assert not [name for name in tensors if "draft" in name]
    assert sorted(path.name for path in (exported / "draft").iterdir()) == [
        "draft.json",
        "draft.safetensors",
    ]
    assert pion("export", "demo", "out")[0] == 0  # an earlier export is replaced
    (exported / "draft" / "mine.txt").write_text("x")
    code, _, err = pion("export", "demo", "out")
    assert code == 2
    assert "contains files that are not part of a Pion export (draft)" in err


def test_a_gguf_file_has_no_draft_block(exported, pion):
    from gguf import GGUFReader

    assert pion("export", "demo", "model.gguf")[0] == 0
    names = [tensor.name for tensor in GGUFReader("model.gguf").tensors]
    assert names
    assert not [name for name in names if "draft" in name]


def change_trunk(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, path, metadata={"format": "pt"})


def change_record(folder, **changes):
    path = folder / "draft" / "draft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_field(folder, name):
    path = folder / "draft" / "draft.json"
    record = json.loads(path.read_text())
    del record[name]
    path.write_text(json.dumps(record))


def change_tensor(folder, name, change):
    """Store what `change` makes of a tensor; None: leave the tensor out."""
    path = folder / "draft" / "draft.safetensors"
    tensors = load_file(path)
    changed = change(tensors.pop(name))
    tensors |= {} if changed is None else {name: changed.contiguous()}
    save_file(tensors, path, metadata={"format": "pt"})


def without_a_number(weight):
    weight[0, 0] = torch.nan
    return weight


def cut_short(folder):
    path = folder / "draft" / "draft.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def overwrite_record(folder, text):
    (folder / "draft" / "draft.json").write_text(text)


def link(folder, name):
    """Replace a file by a link that leads nowhere."""
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to("nowhere")


MIX = "mix.weight"
NOT_RISING = "draft.safetensors: draft.ids: not 200 rising ids of 0"
DAMAGE = {
    "another trunk": (change_trunk, "learned from a model with the tensors"),
    "another width": (lambda out: change_record(out, d_model=48), "for hidden states of width 48"),
    "another tokenizer": (lambda out: change_record(out, vocab_size=9), "for ids: 9, and the"),
    "too many ids": (
        lambda out: change_record(out, draft={"steps": 2, "ids": 10**6}),
        "draft.ids is 1000000; it must be from 1 to",
    ),
    "no steps": (lambda out: change_record(out, draft={"steps": 0}), "draft.steps is 0"),
    "endless steps": (lambda out: change_record(out, draft={"steps": 10**9}), "at most 16"),
    "steps that are a flag": (lambda out: change_record(out, draft={"steps": True}), "is True"),
    "unknown setting": (lambda out: change_record(out, draft={"depth": 1}), "steps and ids"),
    "no setting": (lambda out: drop_field(out, "draft"), "draft is None; it must have steps"),
    "no hash": (lambda out: drop_field(out, "trunk_sha256"), "trunk_sha256 is None; it must be a"),
    "no object": (lambda out: overwrite_record(out, "[]"), "draft.json should be a JSON object"),
    "no JSON": (lambda out: overwrite_record(out, "{steps"), "draft.json is not valid JSON"),
    "no record": (lambda out: (out / "draft/draft.json").unlink(), "it has no draft.json"),
    "a lost record": (lambda out: link(out, "draft/draft.json"), "it has no draft.json"),
    "a lost folder": (lambda out: link(out, "draft"), "it has no draft.json"),
    "ids that fall": (lambda out: change_tensor(out, "ids", lambda t: t.flip(0)), NOT_RISING),
    "ids twice": (lambda out: change_tensor(out, "ids", lambda t: t // 2), NOT_RISING),
    "ids of no token": (lambda out: change_tensor(out, "ids", lambda t: t + 999), NOT_RISING),
    "fewer ids": (lambda out: change_tensor(out, "ids", lambda t: t[:9]), "draft.ids has shape"),
    "another shape": (lambda out: change_tensor(out, MIX, lambda t: t.T), "need (32, 64)"),
    "no number": (lambda out: change_tensor(out, MIX, without_a_number), "are not finite"),
    "a tensor less": (
        lambda out: change_tensor(out, MIX, lambda t: None),
        "the weights have no draft.mix.weight",
    ),
    "no tensors": (lambda out: (out / "draft/draft.safetensors").unlink(), "no draft.safetensors"),
    "cut short": (cut_short, "draft.safetensors"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_block_that_is_not_the_models_is_refused_and_not_needed(exported, pion, what):
    damage, message = DAMAGE[what]
    damage(exported)
    code, out, err = pion("generate", "out", *ASKED, "--drafts", "auto")
    assert (code, out) == (2, "")
    assert message in err
    assert "out/draft" in err
    assert "the model itself can be used: leave the drafts out (--drafts off)" in err
    assert pion("generate", "out", *ASKED, "--drafts", "off")[0] == 0


@pytest.mark.parametrize("command", [("chat",), ("serve", "--port", "0")], ids=["chat", "serve"])
def test_chat_and_serve_refuse_a_damaged_block_before_they_begin(exported, pion, command):
    cut_short(exported)
    code, _, err = pion(command[0], "out", *command[1:], "--drafts", "auto")
    assert code == 2
    assert "out/draft/draft.safetensors" in err
    assert "leave the drafts out (--drafts off)" in err
