"""`--drafts`: the same text, from a run's draft block, an exported one, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run

ASKED = ("--prompt", "Return a new header", "--seed", "3", "--max-tokens", "20")
OUT = "out/draft"


@pytest.fixture
def exported(here: Path, pion: Pion) -> Path:
    """A folder with an exported model and its block."""
    make_run(here / "runs", draft={"steps": 2, "ids": 200})
    assert pion("export", "demo", "out")[0] == 0
    return here / "out"


def test_every_number_of_drafts_gives_the_same_text(exported: Path, pion: Pion) -> None:
    code, text, _ = pion("generate", "demo", *ASKED)
    assert code == 0
    for model in ("demo", "out"):
        for drafts in ("off", "auto", "1", "16"):
            assert pion("generate", model, *ASKED, "--drafts", drafts)[:2] == (0, text)


@pytest.mark.parametrize("drafts", ["0", "17", "-1", "some", "9" * 5000])
def test_a_number_that_makes_no_sense_is_refused(here: Path, pion: Pion, drafts: str) -> None:
    code, _, err = pion("generate", "demo", *ASKED, f"--drafts={drafts}")
    assert code == 2
    assert "is not auto, off or a number from 1 to 16" in err


def test_a_model_without_a_block_is_drafted_by_what_its_text_repeats(
    here: Path, pion: Pion
) -> None:
    make_run(here / "runs")
    texts = {pion("generate", "demo", *ASKED, "--drafts", n)[1] for n in ("off", "auto", "3")}
    assert len(texts) == 1
    pion("export", "demo", "out")
    assert not Path(OUT).exists()


def test_an_export_is_the_plain_model_with_the_block_apart(exported: Path, pion: Pion) -> None:
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


def test_a_gguf_file_has_no_draft_block(exported: Path, pion: Pion) -> None:
    from gguf import GGUFReader

    assert pion("export", "demo", "model.gguf")[0] == 0
    names = [tensor.name for tensor in GGUFReader("model.gguf").tensors]
    assert names
    assert not [name for name in names if "draft" in name]


def change_trunk(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, path, metadata={"format": "pt"})


def change_record(folder: Path, **changes: object) -> None:
    path = folder / "draft" / "draft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_ids(folder: Path) -> None:
    path = folder / "draft" / "draft.safetensors"
    tensors = load_file(path)
    tensors["ids"] = torch.flip(tensors["ids"], [0])
    save_file(tensors, path, metadata={"format": "pt"})


def drop_tensor(folder: Path) -> None:
    path = folder / "draft" / "draft.safetensors"
    tensors = load_file(path)
    del tensors["mix.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = folder / "draft" / "draft.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def overwrite_record(folder: Path) -> None:
    (folder / "draft" / "draft.json").write_text("[]")


DAMAGE = {
    "another trunk": (change_trunk, "learned from a model with the tensors"),
    "another width": (lambda out: change_record(out, d_model=48), "for hidden states of width 48"),
    "another tokenizer": (lambda out: change_record(out, vocab_size=9), "for ids: 9, and the"),
    "too many ids": (
        lambda out: change_record(out, draft={"steps": 2, "ids": 10**6}),
        "draft.ids is 1000000; it must be from 1 to",
    ),
    "no steps": (lambda out: change_record(out, draft={"steps": 0}), "draft.steps is 0"),
    "unknown setting": (lambda out: change_record(out, draft={"depth": 1}), "steps and ids"),
    "no object": (overwrite_record, "draft.json"),
    "ids that fall": (change_ids, "draft.safetensors: draft.ids: not 200 rising ids"),
    "a tensor less": (drop_tensor, "the weights have no draft.mix.weight"),
    "cut short": (cut_short, "draft.safetensors"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_block_that_is_not_the_models_is_refused_and_not_needed(
    exported: Path, pion: Pion, what: str
) -> None:
    damage, message = DAMAGE[what]
    damage(exported)
    code, out, err = pion("generate", "out", *ASKED, "--drafts", "auto")
    assert (code, out) == (2, "")
    assert message in err
    assert pion("generate", "out", *ASKED, "--drafts", "off")[0] == 0
