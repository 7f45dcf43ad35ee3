"""The report has a table of how evenly each layer's experts are used, if there are experts."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.job import Job
from tests.pipeline.report.test_model_card import JOB
from tests.pipeline.report.test_page import METRICS, Page, report_of, row

MIXTURE = JOB["model"] | {"n_layers": 2, "experts": {"n": 8, "top_k": 2, "d_shared": 64}}
WITH_EXPERTS = Job.model_validate(JOB | {"model": MIXTURE})


def steps(first: int, stop: int, load: list[float], entropy: list[float]) -> list[dict[str, Any]]:
    reported = {"expert_load": load, "router_entropy": entropy}
    return [row(step, loss=3.0, **reported) for step in range(first, stop)]


def rows_of(html: str) -> list[list[str]]:
    """Return the rows of all tables."""
    return [re.findall(r"<t[hd].*?>(.*?)</t", found) for found in html.split("<tr>")[1:]]


def shown(html: str) -> tuple[list[list[str]], str]:
    """Return the table's rows, the header first, and the note of the section on experts."""
    _, _, rest = html.partition("<h2>Experts</h2>")
    inside = rest.partition("</section>")[0]
    return rows_of(inside), Page(inside.partition("</table>")[2].removeprefix("</div>")).text


def test_each_layer_has_its_load_and_entropy_at_the_end_of_each_stage(tmp_path: Path) -> None:
    metrics = {
        "pretrain": [
            *steps(1, 100, [4.0, 4.0], [0.1, 0.1]),  # before the last 50 steps
            *steps(100, 125, [1.0, 2.0], [2.0, 1.0]),
            *steps(125, 150, [1.5, 3.0], [2.0, 1.5]),
        ],
        "sft": steps(1, 3, [1.25, 1.0], [1.9, 2.079]),
    }
    html = report_of(tmp_path, job=WITH_EXPERTS, metrics=metrics)
    rows, note = shown(html)
    assert rows == [
        ["layer", "pretraining: load", "entropy", "fine-tuning: load", "entropy"],
        ["blocks.0", "1.25", "2.000", "1.25", "1.900"],
        ["blocks.1", "2.50", "1.250", "1.00", "2.079"],
    ]
    assert "Means of the last 50 steps" in note
    assert "1.0 is even, and 4 is the worst" in note
    assert "2.079 nats if it prefers no expert" in note


@pytest.mark.parametrize(
    ("job", "metrics"),
    [
        (Job.model_validate(JOB), METRICS),
        (WITH_EXPERTS, {}),
        (WITH_EXPERTS, METRICS),
    ],
)
def test_a_model_without_experts_or_without_such_numbers_has_no_section(
    tmp_path: Path, job: Job, metrics: dict[str, Any]
) -> None:
    assert "Experts" not in Page(report_of(tmp_path, job=job, metrics=metrics)).text
