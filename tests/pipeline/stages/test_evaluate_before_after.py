"""Two models are compared document by document on the same rows."""

import numpy as np
import pytest

from pion.errors import BadInput
from pion.evaluation.item_scores import ItemScores, difference, pack, unpack
from pipeline.report.results import numbers_of
from pipeline.stages.evaluate import LABELS, MeasuredStart
from pipeline.stages.measures import NAMES, Measures, TrainedRun
from pipeline.state.record_json import finite_json, parse_record
from pipeline.state.run_state import BY_ITEM
from tests.pipeline.stages.test_evaluate import Folder, World

SHA = "a" * 64


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def start_of(world, folder, *kinds, job=None):
    """Return what is measured of the model in `folder`, as before training."""
    measures = Measures(job or world.job(), TrainedRun({"base": folder}, world.data), lambda: None)
    return MeasuredStart({kind: measures.on_rows("base", kind) for kind in kinds or LABELS}, SHA)


@pytest.mark.parametrize("kind", LABELS)
def test_a_change_is_that_of_the_same_documents(world, kind):
    start, parts, name = start_of(world, world.models["pretrain"], kind), Folder(), NAMES[kind]
    results, _ = world.run(world.job(), parts, start=start)
    sides = start.measured[kind][BY_ITEM][name], parts.load(BY_ITEM)[f"sft.{name}"]
    found, alone = numbers_of(results["change"]), numbers_of(results["sft"])
    assert (found[name], found[f"{name}_sem"]) == difference(*map(unpack, sides))
    assert found[name] == pytest.approx(alone[name] - numbers_of(results["base"])[name])
    assert found[f"{name}_sem"] <= alone[f"{name}_sem"]


def test_a_model_compared_with_itself_has_not_changed(world):
    start = start_of(world, world.models["sft"])
    results, _ = world.run(world.job(), Folder(), start=start)
    for kind in (results["change"], results["change"]["text"]):
        assert kind["bits_per_byte"] == kind["bits_per_byte_sem"] == 0.0
    assert results["change"]["response_loss"] == 0.0
    for name in ("response_loss", "bits_per_byte", "text"):
        assert results["base"][name] == results["sft"][name]


def test_both_models_are_measured_on_the_same_rows_under_the_names_of_other_results(world):
    start = start_of(world, world.models["pretrain"])
    plain, _ = world.run(world.job(), Folder())
    results, said = world.run(world.job(), Folder(), start=start)
    assert results["base"]["bits_per_byte"] == plain["pretrain"]["bits_per_byte"]
    assert results["sft"] == plain["sft"] | {"text": results["sft"]["text"]}
    for side in ("tokens", "bytes", "rows"):
        assert results["base"]["text"][side] == results["sft"]["text"][side]
    assert results["compared_text"] == {"sha256": SHA}
    assert "text" not in results["pretrain"], "only the last model is compared"
    # Random weights say nothing about a run that starts from a model.
    assert "untrained" not in results
    assert not any(BY_ITEM in result for result in results.values())
    assert len(said) == len(set(said))


def test_without_text_of_its_own_a_run_is_compared_on_conversations_and_the_other_text(world):
    start = start_of(world, world.models["pretrain"], "conversations", "text")
    models, data = ({"sft": of["sft"]} for of in (world.models, world.data))
    results, _ = world.run(world.job(), Folder(), start=start, models=models, data=data)
    assert set(results) == {"sft", "base", "change", "compared_text"}
    assert set(results["change"]) == {"response_loss", "response_loss_sem", "text"}
    assert "loss" not in results["sft"]


def test_another_text_is_measured_again(world):
    job, parts = world.job(), Folder()
    start = start_of(world, world.models["pretrain"], "text")
    world.run(job, parts, start=start)
    (world.root / "other.txt").write_text("the dog sat on the list.\n\nthe cat ate the items.")
    job.evaluate.text = "other.txt"
    other = start_of(world, world.models["pretrain"], "text", job=job)
    assert world.run(job, parts, start=other)[1] == ["evaluate: sft model on other text"]


def test_models_measured_on_different_rows_are_not_compared(world):
    (kind, measured), *_ = start_of(world, world.models["sft"], "text").measured.items()
    other = {NAMES[kind]: {"key": {}, **pack(ItemScores(np.ones(1), sizes=np.array([3])))}}
    start = MeasuredStart({kind: measured | {BY_ITEM: other}}, SHA)
    with pytest.raises(BadInput, match=r"different rows, so text\.bits_per_byte can't be compared"):
        world.run(world.job(), Folder(), start=start)


def test_the_sums_of_very_many_documents_can_be_read_again():
    """A record has at most 50,000 values."""
    documents = ItemScores(np.arange(200_000) / 7, sizes=np.arange(200_000))
    kept = parse_record(finite_json({BY_ITEM: {"loss": pack(documents)}}).encode(), "part")
    assert np.array_equal(unpack(kept[BY_ITEM]["loss"]).scores, documents.scores)
