"""The page has tables of the layers' experts and gates, if the model has some."""

import pytest

from pipeline.job import Job
from tests.pipeline.report.test_model_card import JOB
from tests.pipeline.report.test_page_data import METRICS, blocks, row, titles, told

MODEL = JOB["model"] | {"n_layers": 2}
EXPERTS = {"n": 8, "top_k": 2, "d_shared": 64}


def job(**model):
    return Job.model_validate(JOB | {"model": MODEL | model})


PLAIN = Job.model_validate(JOB)
WITH_EXPERTS = job(experts=EXPERTS)


def steps(first, stop, load, entropy):
    reported = {"expert_load": load, "router_entropy": entropy}
    return [row(step, loss=3.0, **reported) for step in range(first, stop)]


def rows_of(table):
    """Return the rows of a table, the header first."""
    return [table["header"], *table["rows"]]


def test_each_layer_has_its_load_and_entropy_at_the_end_of_each_stage():
    metrics = {
        "pretrain": [
            *steps(1, 100, [4.0, 4.0], [0.1, 0.1]),  # before the last 50 steps
            *steps(100, 125, [1.0, 2.0], [2.0, 1.0]),
            *steps(125, 150, [1.5, 3.0], [2.0, 1.5]),
        ],
        "sft": steps(1, 3, [1.25, 1.0], [1.9, 2.079]),
    }
    table, note = blocks(told(known_job=WITH_EXPERTS, metrics=metrics), "Experts")
    assert rows_of(table) == [
        ["layer", "pretraining: load", "entropy", "fine-tuning: load", "entropy"],
        ["blocks.0", "1.25", "2.000", "1.25", "1.900"],
        ["blocks.1", "2.50", "1.250", "1.00", "2.079"],
    ]
    assert "Means of the last 50 steps" in note["text"]
    assert "1.0 is even, and 4 is the worst" in note["text"]
    assert "2.079 nats if it prefers no expert" in note["text"]


def test_each_gate_has_its_first_and_last_loss():
    metrics = {
        "pretrain": [
            row(1, loss=3.0, gate_loss=[2.0, 1.5]),
            row(2, loss=3.0, gate_loss=[1.0, 1.25]),
            row(3, loss=3.0, gate_loss=[0.5, None]),
        ]
    }
    table, _ = blocks(told(known_job=job(gates=True), metrics=metrics), "Gates")
    assert rows_of(table) == [
        ["layer", "pretraining: first loss", "last"],
        ["blocks.0", "2.000", "0.500"],
        ["blocks.1", "1.500", "–"],
    ]


@pytest.mark.parametrize("known", [PLAIN, WITH_EXPERTS, job(gates=True)])
@pytest.mark.parametrize("metrics", [{}, METRICS])
def test_a_model_without_such_parts_or_numbers_has_no_such_section(known, metrics):
    found = titles(told(known_job=known, metrics=metrics))
    assert not {"Experts", "Gates"} & set(found)
