"""The report has tables of recipes and banks, if the model has primitives."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.job import Job
from tests.pipeline.report.test_experts import rows_of
from tests.pipeline.report.test_model_card import JOB
from tests.pipeline.report.test_page import METRICS, Page, report_of, row

BANKS = {"n": 8, "rank": 4, "top_k": 2, "bands": [[0], [1]]}
MIXED = JOB["model"] | {"n_layers": 2, "activation": "gelu", "primitives": BANKS}
WITH_RECIPES = Job.model_validate(JOB | {"model": MIXED})


def test_each_bank_and_layer_has_its_numbers_after_each_stage(tmp_path: Path) -> None:
    metrics = {
        "pretrain": [
            row(1, loss=3.0, recipe_entropy=[2.0, 2.0], primitives_used=[8, 8, 8, 8]),
            row(2, loss=3.0, recipe_entropy=[1.5, 0.5], primitives_used=[2, 3, 4, 5]),
        ],
        "sft": [row(1, loss=3.0, recipe_entropy=[1.25, 0.25], primitives_used=[2, 2, 2, 2])],
    }
    html = report_of(tmp_path, job=WITH_RECIPES, metrics=metrics)
    _, _, rest = html.partition("<h2>Recipes</h2>")
    rows = rows_of(rest.partition("</section>")[0])
    assert rows == [
        ["bank", "pretraining: used", "dead", "fine-tuning: used", "dead"],
        ["bands.0.up", "2", "6", "2", "6"],
        ["bands.0.down", "3", "5", "2", "6"],
        ["bands.1.up", "4", "4", "2", "6"],
        ["bands.1.down", "5", "3", "2", "6"],
        ["layer", "pretraining: entropy", "fine-tuning: entropy"],
        ["blocks.0", "1.500", "1.250"],
        ["blocks.1", "0.500", "0.250"],
    ]
    assert "2.079 nats if all 8 primitives weigh the same" in Page(html).text


def test_recipes_of_experts_are_named_by_layer_and_number(tmp_path: Path) -> None:
    routed = MIXED | {"experts": {"n": 2, "shared": 0}}
    entropy = [2.0, 1.5, 1.0, 0.5]
    last = row(1, loss=3.0, recipe_entropy=entropy, primitives_used=[8, 8, 8, 8])
    job = Job.model_validate(JOB | {"model": routed})
    html = report_of(tmp_path, job=job, metrics={"pretrain": [last]})
    _, _, rest = html.partition("<h2>Recipes</h2>")
    rows = rows_of(rest.partition("</section>")[0])
    names = [f"blocks.{layer}.recipes.{number}" for layer in (0, 1) for number in (0, 1)]
    assert [cells[0] for cells in rows[-4:]] == names


@pytest.mark.parametrize(
    ("job", "metrics"),
    [(Job.model_validate(JOB), METRICS), (WITH_RECIPES, {}), (WITH_RECIPES, METRICS)],
)
def test_a_model_without_primitives_or_without_such_numbers_has_no_section(
    tmp_path: Path, job: Job, metrics: dict[str, Any]
) -> None:
    assert "Recipes" not in Page(report_of(tmp_path, job=job, metrics=metrics)).text
