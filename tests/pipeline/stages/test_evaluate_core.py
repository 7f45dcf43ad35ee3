"""CORE in the evaluate stage: a part for each task, and the answers by which runs are compared."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pion.errors import BadInput
from pion.evaluation.item_scores import difference, unpack
from pipeline.report.benchmarks import core_in_words
from pipeline.state.record_json import finite_json
from tests.pipeline.stages.test_evaluate import Folder, World
from tests.support.core_bundle import items, pinned, write_bundle

TASKS = ["made_up_choice", "made_up_schema", "made_up_words"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        pinned(patch, write_bundle(made.root / "b.zip"))
        yield made


class Stored(Folder):
    """Parts as a store keeps them: NaN is null."""

    def save(self, name, result):
        return super().save(name, json.loads(finite_json(result)))


def job(world, **core):
    asked = {"path": "b.zip", "items": 7, "cropped": True, **core}
    return world.job(core=asked, ngram_order=0, continuations=0)


def test_every_model_is_asked_and_the_answers_are_kept_apart(world):
    parts = Folder()
    results, said = world.run(job(world), parts)
    for stage in ("pretrain", "sft"):
        core = results[stage]["core"]
        assert [task["label"] for task in core["tasks"]] == TASKS
        assert (core["limit"], core["context"], core["dtype"]) == (7, 64, "float32")
        assert not {"credits", "choices"} & core["tasks"][0].keys()
        kept = json.loads(parts.kept["by_item"])
        credits = unpack(kept[f"{stage}.core.made_up_choice"]).scores
        assert credits.mean() == pytest.approx(core["tasks"][0]["accuracy"])
    assert "evaluate: pretrain model on 7 items of made_up_choice" in said
    assert results["pretrain"]["core"] != results["sft"]["core"]
    assert core_in_words(results["sft"]["core"]).startswith("CORE ")


@pytest.mark.parametrize("room", [pytest.param(2, marks=pytest.mark.soak), 3, 7])
def test_an_interruption_at_a_task_gives_the_same_bytes(world, room):
    whole, parts = Folder(), Folder(room)
    expected, every = world.run(job(world), whole)
    with pytest.raises(KeyboardInterrupt):
        world.run(job(world), parts)
    parts.room = 1000
    results, said = world.run(job(world), parts)
    assert (results, parts.kept) == (expected, whole.kept)
    assert said == every[room:]


def test_changed_questions_are_asked_again_and_no_others(world, tmp_path, monkeypatch):
    parts, lines = Folder(), items()
    world.run(job(world), parts)
    lines["schema/pronouns.jsonl"][0]["continuation"] = "was another one."
    changed = pinned(monkeypatch, write_bundle(tmp_path / "b.zip", lines=lines))
    _, said = world.run(job(world, path=str(changed)), parts)
    assert said == [
        f"evaluate: {model} model on 7 items of made_up_schema" for model in ("pretrain", "sft")
    ]


def test_two_models_are_compared_by_item(world):
    parts = Folder()
    results, _ = world.run(job(world, items="all"), parts)
    assert results["sft"]["core"]["limit"] is None
    assert [task["items"] for task in results["sft"]["core"]["tasks"]] == [12, 12, 12]
    kept = json.loads(parts.kept["by_item"])
    for number, name in enumerate(f"core.{label}" for label in TASKS):
        assert kept[f"pretrain.{name}"]["key"] == kept[f"sft.{name}"]["key"]
        sides = [unpack(kept[f"{model}.{name}"]) for model in ("pretrain", "sft")]
        change, error = difference(*sides)
        before, after = (results[m]["core"]["tasks"][number] for m in ("pretrain", "sft"))
        assert change == pytest.approx(after["accuracy"] - before["accuracy"])
        by_hand = np.std(sides[1].scores - sides[0].scores, ddof=1) / math.sqrt(12)
        assert error == pytest.approx(by_hand or 0.5 / 13)


def test_held_out_documents_and_conversations_are_kept_too(world):
    parts = Folder()
    results, _ = world.run(job(world), parts)
    kept = json.loads(parts.kept["by_item"])
    text, talk = (unpack(kept[f"sft.{name}"]) for name in ("bits_per_byte", "response_loss"))
    for found, name in ((text, "bits_per_byte"), (talk, "response_loss")):
        value = found.scores.sum() / found.sizes.sum()
        assert value == pytest.approx(results["sft"][name])
    assert kept["sft.bits_per_byte"]["key"] == kept["pretrain.bits_per_byte"]["key"]


def test_logits_that_are_not_numbers_are_no_wrong_answers(world, tmp_path):
    config = (world.models["pretrain"] / "config.json").read_text()
    weights = load_file(world.models["pretrain"] / "model.safetensors")
    save_file({k: torch.full_like(w, math.nan) for k, w in weights.items()}, tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    parts, broken = Stored(), {"pretrain": tmp_path}
    results, _ = world.run(job(world), parts, models=broken)
    again, said = world.run(job(world), parts, models=broken)
    for core in (results["pretrain"]["core"], again["pretrain"]["core"]):
        assert math.isnan(core["value"])
        assert core["tasks"][0]["not_finite"] == 7
        assert "not finite" in core_in_words(core)
    assert said == []


@pytest.mark.parametrize(
    ("core", "message"),
    [
        ({"cropped": False}, "evaluate.core: the model's context has 64 tokens. CORE needs"),
        ({"path": "nowhere"}, "can't read"),
        ({"path": "."}, "expected the published archive"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(world, core, message):
    parts = Folder()
    with pytest.raises(BadInput, match=message) as refused:
        world.run(job(world, **core), parts)
    assert not parts.kept
    if "cropped" in core:
        assert "Set evaluate.core.cropped: true" in str(refused.value)
