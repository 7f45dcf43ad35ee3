"""Two models are compared row by row on the same rows."""

import math

import numpy as np
import pytest

from pion.errors import BadInput
from pipeline.stages.evaluate import LABELS, MeasuredStart, compare, measure_each
from pipeline.stages.measures import Measures, TrainedRun
from tests.pipeline.stages.test_evaluate import Folder, World

SHA = "a" * 64


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def start_of(world, folder, *kinds):
    """Return what is measured of the model in `folder`, as before training."""
    measures = Measures(world.job(), TrainedRun({"base": folder}, world.data), lambda: None)
    names = {kind: kind for kind in kinds or LABELS}
    return MeasuredStart(measure_each(measures, "base", names, Folder()), SHA)


def change_of(kind, before, after):
    return compare(MeasuredStart({kind: before}, SHA), {kind: after})["change"]


def part(nats, sizes, **results):
    return {**results, "by_document": {"nats": nats, "sizes": sizes}}


def test_the_error_of_a_change_is_that_of_paired_rows():
    draw = np.random.default_rng(0)
    sizes = draw.integers(50, 60, 40)
    before = draw.normal(400, 90, 40)  # rows differ much more than the two models do
    after = before + draw.normal(11, 2, 40)
    sides = (part(side.tolist(), sizes.tolist()) for side in (before, after))
    change = change_of("conversations", *sides)
    expected = (after - before).sum() / sizes.sum()
    assert change["response_loss"] == pytest.approx(expected)
    spread = (after - before - expected * sizes).std(ddof=1) * math.sqrt(40) / sizes.sum()
    assert change["response_loss_sem"] == pytest.approx(spread, rel=1e-6)
    assert change["response_loss_sem"] < 0.02 * (before / sizes).std()


def test_a_change_on_text_is_in_bits_for_a_byte():
    before, after = part([10.0, 20.0], [4, 4]), part([12.0, 22.0], [4, 4])
    change = change_of("text", before, after)
    assert change["text"]["bits_per_byte"] == pytest.approx(0.5 / math.log(2))
    assert change["text"]["bits_per_byte_sem"] == pytest.approx(0.0, abs=1e-12)


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
    assert results["change"]["bits_per_byte"] == pytest.approx(
        results["sft"]["bits_per_byte"] - results["base"]["bits_per_byte"]
    )
    assert results["change"]["text"]["bits_per_byte"] == pytest.approx(
        results["sft"]["text"]["bits_per_byte"] - results["base"]["text"]["bits_per_byte"]
    )
    assert results["compared_text"] == {"sha256": SHA}
    assert "text" not in results["pretrain"], "only the last model is compared"
    # Random weights say nothing about a run that starts from a model.
    assert "untrained" not in results
    assert not any("by_document" in result for result in results.values())
    assert len(said) == len(set(said))


def test_without_text_of_its_own_a_run_is_compared_on_conversations_and_the_other_text(world):
    start = start_of(world, world.models["pretrain"], "conversations", "text")
    models, data = ({"sft": of["sft"]} for of in (world.models, world.data))
    results, _ = world.run(world.job(), Folder(), start=start, models=models, data=data)
    assert set(results) == {"sft", "base", "change", "compared_text"}
    assert set(results["change"]) == {"response_loss", "response_loss_sem", "text"}
    assert "loss" not in results["sft"]


def test_another_text_is_another_part():
    names = [MeasuredStart({"text": {}, "conversations": {}}, sha * 64).names for sha in "ab"]
    assert names[0]["text"] != names[1]["text"]
    assert names[0]["conversations"] == names[1]["conversations"]


def test_models_measured_on_different_rows_are_not_compared():
    with pytest.raises(BadInput, match="different rows, so response_loss can't be compared"):
        change_of("conversations", part([1.0], [3]), part([1.0], [4]))


def test_a_loss_that_is_not_finite_gives_no_change():
    lost = [None, 2.0]  # as JSON keeps it
    change = change_of("text", part([1.0, 2.0], [3, 3]), part(lost, [3, 3]))
    assert math.isnan(change["text"]["bits_per_byte"])
