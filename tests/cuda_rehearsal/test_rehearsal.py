"""The library does what it should on a pretended CUDA card, with every model of scenarios.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cuda_rehearsal.report import Report
from tests.cuda_rehearsal.scenarios import MODELS, SCENARIOS

Reports = dict[str, Report]

# How often the host may wait for the card: in a training step, in a call that reads the losses, in
# a micro-batch of an evaluation, and for a new token.
MOST_HOST_SYNCS = {"train": 0, "drain": 1, "evaluate": 1, "generate": 1}


@pytest.fixture(scope="module")
def reports(on_pretended_card: Callable[[str], Reports]) -> Reports:
    return on_pretended_card("tests.cuda_rehearsal.rehearse")


def counted(name: str) -> str:
    """Return the first word of a scenario's name, such as "train" of "dense: train adamw …"."""
    return name.partition(": ")[2].split()[0]


def trainings(reports: Reports) -> Reports:
    return {name: report for name, report in reports.items() if counted(name) == "train"}


def test_every_model_ends_every_scenario(reports: Reports) -> None:
    assert {name: report.error for name, report in reports.items() if report.error} == {}
    assert reports.keys() == {f"{model}: {name}" for model in MODELS for name in SCENARIOS}
    assert all(report.units > 0 for report in reports.values())


def test_the_host_waits_for_the_card_no_more_than_it_must(reports: Reports) -> None:
    too_many = {
        name: waits
        for name, report in reports.items()
        if len(waits := report.of_kind("host_sync")) > MOST_HOST_SYNCS[counted(name)] * report.units
    }
    assert too_many == {}


def test_no_operation_mixes_host_and_card(reports: Reports) -> None:
    mixed = {name: report.of_kind("wrong_device") for name, report in reports.items()}
    assert {name: found for name, found in mixed.items() if found} == {}


def test_no_operation_on_the_card_is_in_fp64(reports: Reports) -> None:
    double = {name: report.of_kind("fp64") for name, report in reports.items()}
    assert {name: found for name, found in double.items() if found} == {}


def test_batches_of_training_are_copied_from_page_locked_memory(reports: Reports) -> None:
    copies = {name: report.of_kind("unpinned_copy") for name, report in trainings(reports).items()}
    assert {name: found for name, found in copies.items() if found} == {}


def test_weights_states_and_caches_are_on_the_card_in_fp32(reports: Reports) -> None:
    astray = {
        f"{name}: {tensor}": place
        for name, report in reports.items()
        for tensor, place in report.tensors.items()
        if place != "cuda:0 torch.float32"
    }
    assert astray == {}


@pytest.mark.parametrize(
    ("scenario", "parts"),
    [
        ("train adamw bfloat16", ("embed._parameters.weight", "exp_avgs", "exp_avg_sqs", "steps")),
        ("train muon bfloat16", ("exp_avgs", "momentum")),
        ("evaluate text float32", ("embed._parameters.weight",)),
        ("generate float32", ("layers.1.keys", "layers.1.values")),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_these_tensors_were_looked_at(
    reports: Reports, model: str, scenario: str, parts: tuple[str, ...]
) -> None:
    names = " ".join(reports[f"{model}: {scenario}"].tensors)
    assert [part for part in parts if part not in names] == []


def test_matrix_products_of_training_have_the_dtype_of_the_plan(reports: Reports) -> None:
    dtypes = {name: report.matmul_dtypes for name, report in trainings(reports).items()}
    assert dtypes == {name: [f"torch.{name.split()[-1]}"] for name in dtypes}
