"""The report has a table of gates, if the model has some."""

from pathlib import Path

from pipeline.job import Job
from tests.pipeline.report.test_experts import rows_of
from tests.pipeline.report.test_model_card import JOB
from tests.pipeline.report.test_page import METRICS, Page, report_of, row


def test_each_gate_has_its_first_and_last_loss(tmp_path: Path) -> None:
    job = Job.model_validate(JOB | {"model": JOB["model"] | {"n_layers": 2, "gates": True}})
    metrics = {
        "pretrain": [
            row(1, loss=3.0, gate_loss=[2.0, 1.5]),
            row(2, loss=3.0, gate_loss=[1.0, 1.25]),
            row(3, loss=3.0, gate_loss=[0.5, None]),
        ]
    }
    html = report_of(tmp_path, job=job, metrics=metrics)
    _, _, rest = html.partition("<h2>Gates</h2>")
    assert rows_of(rest.partition("</section>")[0]) == [
        ["layer", "pretraining: first loss", "last"],
        ["blocks.0", "2.000", "0.500"],
        ["blocks.1", "1.500", "–"],
    ]


def test_other_models_have_no_such_section(tmp_path: Path) -> None:
    job = Job.model_validate(JOB)
    assert "<h2>Gates</h2>" not in report_of(tmp_path, job=job, metrics=METRICS)
    assert Page(report_of(tmp_path, job=job, metrics=METRICS)).text
